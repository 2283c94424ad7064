"""Clients in another language trade by the published documents alone: in node, and in a page.

The packages they need come from npm, once for this file; without them everything here but the
part that needs none is skipped.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from compex_client import messages as m
from compex_client.wallet import Wallet

from gateway import wire
from gateway.documents import asyncapi
from gateway.health import Health
from gateway.server import GatewayServer
from gateway.session import BUILD
from tests.exchange import TICKER, Exchange, running_exchange, running_server
from tests.web.browser import open_page
from tests.web.test_modules import node

HERE = Path(__file__).parent
INSTALLED = ("package.json", "package-lock.json", ".npmrc")
INSTALL_S, RUN_S = 180, 60
SELLER, BUYER = 1, 2


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the trader and its `node_modules`."""
    directory = tmp_path_factory.mktemp("packages")
    for name in (*INSTALLED, "trader.js", "trader.mjs"):
        shutil.copy(HERE / name, directory)
    npm = shutil.which("npm", path=str(Path(node()).parent)) or shutil.which("npm")
    if npm is None:
        pytest.skip("NO NPM: clients in other languages are not tested")
    done = subprocess.run(
        [npm, "ci"], cwd=directory, capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    if done.returncode:
        pytest.skip(f"NO PACKAGES: clients in other languages are not tested\n{done.stderr}")
    return directory


@asynccontextmanager
async def market(directory: Path) -> AsyncGenerator[tuple[Exchange, Wallet]]:
    """An exchange where 16 GPU-hours are offered at 2.5, and a wallet that has money."""
    async with running_exchange(directory) as exchange:
        instrument = await exchange.list_market()
        seller = await exchange.open_account(SELLER, bond_usdc6=10**9)
        buyer = await exchange.open_account(BUYER, cash_usdc6=10**9)
        await exchange.declare(SELLER, instrument, 10_000)
        exchange.converse(seller).say(m.New(2, TICKER, "sell", "2.5", "16"))
        await exchange.port.settled()
        yield exchange, buyer


def assert_day_was_good(day: Any, exchange: Exchange) -> None:
    """By what the client says, and by what the exchange has."""
    assert isinstance(day, dict), day
    assert (day["account"], day["best"], day["level"]) == (BUYER, "2.5000", "durable")
    assert (day["fill"]["price"], day["fill"]["qty"], day["fill"]["left"]) == ("2.5000", "4", "0")
    assert (day["cancelled"], day["state"], day["open"]) == ("2", "filled", 0)
    assert (day["isRefused"], day["isSame"]) == (True, True)
    assert "side is none of buy,sell" in day["unsaid"]
    assert day["missed"] == 0, "nothing happened meanwhile"
    feed = exchange.desk.feed
    assert (day["money"]["free"], day["money"]["pending"]) == ("990", "10")
    assert feed.balances(BUYER).pending == "10" and not feed.open_orders(BUYER)
    assert [x.left for x in feed.open_orders(SELLER)] == ["12"], "traded once, not twice"
    assert day["received"] > 15


async def test_a_script_in_node_trades_by_the_document(packages: Path, tmp_path: Path) -> None:
    async with market(tmp_path) as (exchange, buyer), running_server(exchange) as (server, _):
        at = "http://{}:{}".format(*server.address)
        process = await asyncio.create_subprocess_exec(
            node(), packages / "trader.mjs", at, TICKER,
            env=os.environ | {"COMPEX_KEY": buyer.export_secret()},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(RUN_S):
            out, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        assert_day_was_good(json.loads(out), exchange)


async def test_a_page_trades_by_the_document(packages: Path, tmp_path: Path) -> None:
    web, profile = tmp_path / "web", tmp_path / "browser"
    for directory in (web, profile):
        directory.mkdir()
    shutil.copy(HERE / "trader.html", web / "index.html")
    shutil.copy(HERE / "trader.js", web)
    shutil.copy(packages / "node_modules" / "ethers" / "dist" / "ethers.min.js", web)
    async with market(tmp_path / "data") as (exchange, buyer):
        server = GatewayServer(exchange.desk, Health(exchange.port), web_root=web)
        await server.start()
        try:
            host, port = server.address
            where = f"http://{host}:{port}/#market={TICKER}&key={buyer.export_secret()}"
            async with open_page(profile, where) as page:
                day = await page.until("window.outcome", timeout_s=RUN_S)
                assert not page.problems
        finally:
            await server.stop()
        assert_day_was_good(day, exchange)


def test_the_websocket_document_is_valid_asyncapi(packages: Path) -> None:
    specs = packages / "node_modules" / "@asyncapi" / "specs" / "schemas"
    meta = json.loads((specs / "3.0.0-without-$id.json").read_bytes())
    document = json.loads(json.dumps(asyncapi(BUILD)))
    validator = jsonschema.Draft7Validator(meta)
    found = [f"{list(x.path)}: {x.message[:200]}" for x in validator.iter_errors(document)]
    assert not found, "\n".join(found[:5])
    del document["info"]["version"]
    assert list(validator.iter_errors(document)), "so that the check is known to find something"


CHECK = """
import { faults } from "./trader.js";
let text = "";
for await (const chunk of process.stdin) text += chunk;
const { document, cases } = JSON.parse(text);
const verdicts = cases.map((value) => {
  const described = document.components.messages[value.t];
  return !faults(described.payload, value, document, value.t).length;
});
console.log(JSON.stringify(verdicts));
"""


def test_the_clients_check_is_as_strict_as_the_gateway(tmp_path: Path) -> None:
    """Needs no packages: the client's own validator against what the gateway decodes."""
    shutil.copy(HERE / "trader.js", tmp_path)
    (tmp_path / "check.mjs").write_text(CHECK)
    shutil.copy(HERE / "package.json", tmp_path)
    good: dict[str, Any] = {
        "t": "quote", "id": 1, "market": TICKER, "bids": [["1", "2"]], "asks": [["3", "4"]],
    }  # fmt: skip
    bad: list[dict[str, Any]] = [
        {**good, "id": 0}, {**good, "id": 1 << 53}, {**good, "id": "1"}, {**good, "nosuch": 1},
        {**good, "bids": [["1"]]}, {**good, "bids": [["1", "2", "3"]]}, {**good, "bids": [[1, 2]]},
        {**good, "bids": [["1", "2"]] * 169}, {**good, "market": "x" * 129},
        {**good, "post_only": 1}, {**good, "self_trade": "allow"}, {**good, "asks": {}},
        {"t": "quote", "id": 1}, {**good, "client_id": -1}, {**good, "market": None},
    ]  # fmt: skip
    asked = {"document": asyncapi(BUILD), "cases": [good, *bad]}
    run = subprocess.run(
        [node(), tmp_path / "check.mjs"], input=json.dumps(asked), capture_output=True, text=True,
        timeout=RUN_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [True] + [False] * len(bad)
    wire.JSON.decode(json.dumps(good))
    for message in bad:
        with pytest.raises(wire.BadRequest):
            wire.JSON.decode(json.dumps(message))
