"""The README is true: its example trades and settles, its commands, files and names exist."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from compex_client import Wallet, connect

from engine.book import SHEETS_MAX
from engine.catalog import load_catalog
from engine.clock import SystemClock
from engine.records import CAPACITIES_MAX, INSTRUMENTS_MAX, QTY_LOTS_MAX, QUOTED_MARKETS_MAX
from engine.rejects import Reject
from gateway.cli import command_line
from gateway.demo.prices import load_quotes
from gateway.node import Funding, Node
from gateway.settings import (
    ENVIRONMENT,
    ChainSettings,
    GatewaySettings,
    MarketSettings,
    Settings,
    SettlementSettings,
)
from tests.passable import passable_directory

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
UNWRAPPED = " ".join(README.split())
SYMBOL = "nv.h100-sxm-80g.x1|us-e|B|SPOT"
PRICE = "2.4150"
EXAMPLE_S = 60.0
PICTURE_BYTES_MAX = 200_000
EMPTY_BYTES = 100  # a package's __init__.py says no more than what it is
PNG = b"\x89PNG\r\n\x1a\n"


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@asynccontextmanager
async def running_node() -> AsyncGenerator[Node]:
    """As `compex up`, with one market and an ask of 8 GPU-hours in it."""
    settings = Settings(
        gateway=GatewaySettings(port=0),
        markets=MarketSettings(listed=(SYMBOL,)),
        chain=ChainSettings(embedded_rpc_port=-1),
        settlement=SettlementSettings(turn_seconds=0.1, batch_wait_seconds=0),
    )
    with passable_directory() as directory:
        node = await Node.open(directory / "node", settings, SystemClock())
        try:
            await node.fund([Funding(key(1), 0, 10**9), Funding(key(2), 10**8, 0)])
            await node.turn()
            async with await connect(node.websocket_url, Wallet(key(1))) as seller:
                await seller.declare_capacity(SYMBOL, "8")
                await seller.place(SYMBOL, "sell", PRICE, "8")
            yield node
        finally:
            await node.close()


async def test_the_example_places_fills_and_settles_an_order(tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    script = tmp_path / "first.py"
    script.write_text(example, "utf-8")
    async with running_node() as node:
        settling = asyncio.create_task(node.run())
        secret = Wallet(key(2)).export_secret()
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, node.websocket_url, secret, SYMBOL, PRICE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(EXAMPLE_S):
            said = (await process.communicate())[0].decode()
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        assert process.returncode == 0, said
        ack, fill, transfer = said.splitlines()
        assert ack.startswith("Ack(")
        assert fill.startswith("Fill(") and f"price='{PRICE}'" in fill and "qty='1'" in fill
        assert transfer.startswith("Transfer(") and "kind='escrow'" in transfer

        accounts = await node.chain.vault_accounts(await node.chain.final_block())
        assert [account.locked_usdc6 for account in accounts] == [0, 0, 2_415_000]
        report = await node.settlement.reconcile()
        assert report.reconciled, report.gaps


def commands() -> Iterator[list[str]]:
    """Each command of the README's shell blocks as words, without its variables and comment."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                at = words.index("&&")
                yield words[:at]
                words = words[at + 1 :]
            yield [word for word in words if not re.match(r"[A-Z_]+=", word)]


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_is_one_that_there_is(words: list[str]) -> None:
    if ">" in words:
        words = words[: words.index(">")]
    match words:
        case ["pip", "install", "uv"]:
            pass
        case ["uv", "run", "compex", *arguments]:
            options = command_line().parse_args(arguments)
            if "symbol" in options:
                load_catalog().parse(options.symbol)
        case ["uv", "run", "python", "-m", module, *_]:
            assert find_spec(module), f"no module {module}"
        case ["uv", "run", "pytest", *arguments]:
            assert all((ROOT / a).exists() for a in arguments if a.startswith("tests"))
        case ["bash", script]:
            assert os.access(ROOT / script, os.X_OK)
        case _:
            pytest.fail(f"this test knows no command like {words}")


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    gone = [link for link in links if not (ROOT / link).exists()]
    assert not gone, f"the README links to {gone}"


def test_the_picture_is_a_small_png() -> None:
    [path] = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    picture = (ROOT / path).read_bytes()
    assert picture.startswith(PNG) and len(picture) <= PICTURE_BYTES_MAX


def test_the_map_names_every_module_and_no_other() -> None:
    mapped: set[str] = set()
    package = ""
    for bold, name in re.findall(r"^\| (\*\*|`)([\w./]+)(?:\*\*|`) \|", README, re.MULTILINE):
        if bold == "**":
            package = name
        elif package:
            mapped.add(package + name)
    for entry in mapped:
        assert (ROOT / entry).exists(), f"the map names {entry}, which is gone"
    listed = subprocess.run(
        ["git", "ls-files", "engine", "gateway", "settlement", "benchmarks"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in listed:
        if name.endswith(".py") and (ROOT / name).stat().st_size > EMPTY_BYTES:
            folders = tuple(entry for entry in mapped if entry.endswith("/"))
            assert name in mapped or name.startswith(folders), f"the map does not name {name}"


def test_every_variable_is_a_setting() -> None:
    said = set(re.findall(r"COMPEX_[A-Z_]+", README))
    assert said == {*ENVIRONMENT, "COMPEX_ANVIL", "COMPEX_PICTURES", "COMPEX_SEED"}


def test_the_numbers_are_the_projects() -> None:
    catalog = load_catalog()
    quotes, skipped = load_quotes()
    assert f"{len(catalog.classes)} hardware classes, {len(catalog.regions)} regions" in README
    assert f"{len(quotes)} of {len(quotes) + len(skipped)} rows" in README
    assert f"{len({quote.provider for quote in quotes})} providers" in README
    a, b, c = (grade.bond_percent for grade in catalog.grades)
    assert f"{a} % of the reference price for A, {b} % for B, {c} % for C" in UNWRAPPED
    for number, what in (
        (INSTRUMENTS_MAX, "markets"),
        (CAPACITIES_MAX, "capacities"),
        (SHEETS_MAX - 1, "sheets of quotes"),
        (QTY_LOTS_MAX, "lots"),
    ):
        assert f"{number:,} {what}" in UNWRAPPED
    assert f"at most {QUOTED_MARKETS_MAX}, which" in UNWRAPPED
    for reject in (
        Reject.TOO_MANY_INSTRUMENTS,
        Reject.TOO_MANY_CAPACITIES,
        Reject.TOO_MANY_QUOTERS,
    ):
        assert f"({reject.value}" in README
    symbol, ticker = re.findall(r"`(nv\.h100[^`]+)`,\s+ticker `(\w+)`", README)[0]
    assert catalog.ticker(catalog.parse(symbol)) == ticker
