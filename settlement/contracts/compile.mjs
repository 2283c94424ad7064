// Standard JSON in on stdin, standard JSON out on stdout; imports come from node_modules.
import { readFileSync } from "node:fs";
import { join, normalize } from "node:path";
import solc from "solc";

const packages = join(import.meta.dirname, "node_modules");

function read(name) {
  const path = normalize(join(packages, name));
  if (!path.startsWith(packages)) return { error: `${name} lies outside of the packages` };
  try {
    return { contents: readFileSync(path, "utf8") };
  } catch (error) {
    return { error: String(error) };
  }
}

const output = JSON.parse(solc.compile(readFileSync(0, "utf8"), { import: read }));
output.compiler = solc.version();
process.stdout.write(JSON.stringify(output));
