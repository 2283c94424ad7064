// A market's symbol in words for people. `nv.h100-sxm-80g.x8.ib|us-e|B|SPOT` ->
// H100 SXM, 80 GB, 8 GPUs, InfiniBand; us-e; B; SPOT. Pure.

const VENDORS = { nv: "NVIDIA", am: "AMD", in: "Intel" };
const FABRICS = { ib: "InfiniBand", roce: "RoCE", nvl72: "NVL72" };
const REGIONS = {
  "us-e": "US East",
  "us-c": "US Central",
  "us-w": "US West",
  ca: "Canada",
  "eu-n": "Europe North",
  "eu-w": "Europe West",
  "eu-s": "Europe South",
  "ap-ne": "Asia North-East",
  "ap-se": "Asia South-East",
  "ap-s": "South Asia",
  oc: "Oceania",
};
const WORDS = {
  rtxpro6000se: "RTX PRO 6000 SE",
  rtxpro6000: "RTX PRO 6000",
  rtx6000ada: "RTX 6000 Ada",
  rtx2000ada: "RTX 2000 Ada",
  rtx4070tis: "RTX 4070 Ti S",
  rtx4060ti: "RTX 4060 Ti",
  rtx3060ti: "RTX 3060 Ti",
  quadrortx6000: "Quadro RTX 6000",
  gaudi2: "Gaudi 2",
  pcie: "PCIe",
};
const CLASS_ID = /^([a-z]{2})\.(.+)-(\d+)g\.x(\d+)(?:\.([a-z0-9]+))?$/;

/** {vendor, model, memoryGib, gpus, fabric, region, regionName, grade, window}; of a symbol that
 * does not look like one, the whole text is the model and the rest is empty. */
export function describe(symbol) {
  const [classId, region = "", grade = "", ...window] = symbol.split("|");
  const match = CLASS_ID.exec(classId);
  const [, vendor = "", model = classId, memory = "0", gpus = "1", fabric = ""] = match ?? [];
  return {
    vendor: VENDORS[vendor] ?? vendor,
    model: match ? model.split("-").map(word).join(" ") : classId,
    memoryGib: Number(memory),
    gpus: Number(gpus),
    fabric: FABRICS[fabric] ?? fabric,
    region,
    regionName: REGIONS[region] ?? region,
    grade,
    window: window.join(" "),
  };
}

/** One line under the model: "80 GB · 8 GPUs · InfiniBand". */
export function detail({ memoryGib, gpus, fabric }) {
  const parts = [memoryGib ? `${memoryGib} GB` : "", gpus === 1 ? "1 GPU" : `${gpus} GPUs`, fabric];
  return parts.filter(Boolean).join(" · ");
}

function word(part) {
  if (WORDS[part]) return WORDS[part];
  const geforce = /^rtx(a?\d+)$/.exec(part);
  return geforce ? `RTX ${geforce[1].toUpperCase()}` : part.toUpperCase();
}
