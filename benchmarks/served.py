"""The real gateway on the real engine, in a process of its own, with markets and funded accounts.

    python -m benchmarks.served DIRECTORY durable|unsynced

The journal lies in DIRECTORY, and `unsynced` it is written but not synced: what waiting for the
disk costs is the difference. Everything else is as in a node without settlement; account n belongs
to `trader(n)`. No limit of a connection is in the way: the engine's own still are. `gateway` starts
it, and tells it what to do as `targets` says.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from compex_client import messages as m
from compex_client.wallet import Domain, Wallet

from benchmarks.durability import UnsyncedDisk
from benchmarks.peers import written
from benchmarks.targets import HOST, obey, run_server
from engine.catalog import Catalog, load_catalog
from engine.clock import SystemClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.records import (
    AMOUNT_USDC6_MAX,
    COMMAND_STRUCT,
    QTY_LOTS_MAX,
    Command,
    CommandKind,
    Purse,
)
from gateway import wire
from gateway.health import Health
from gateway.limits import DEFAULT_LIMITS
from gateway.server import GatewayServer
from gateway.session import Desk, open_desk
from gateway.transport import Access

DOMAIN: Final = Domain(chain_id=31337, vault=bytes.fromhex("c0" * 20))
REGIONS: Final = ("us-e", "us-w", "eu-n", "eu-w")
ACCOUNTS: Final = 32
UNLIMITED: Final = 1_000_000_000  # a second
BOND_USDC6_PER_LOT: Final = 100
OWNER: Final = slice(24, 44)  # of an OPEN_ACCOUNT, which names no field of its own there
UPDATE_BYTES: Final = 300
FIRST_ROUND: Final = 1_000_000  # so that each update has as many digits
CODEC_ROUNDS: Final = 7


def trader(account: int) -> Wallet:
    """The same wallet for the same number, every time."""
    return Wallet((1000 + account).to_bytes(32, "big"))


def symbols() -> list[str]:
    return [f"nv.h100-sxm-80g.x8.ib|{region}|B|SPOT" for region in REGIONS]


def tickers(catalog: Catalog) -> list[str]:
    return [catalog.ticker(catalog.parse(symbol)) for symbol in symbols()]


def update(ticker: str, number: int) -> m.Index:
    """One of UPDATE_BYTES as it goes out."""
    bare = m.Index(ticker, "2.4150", "A", FIRST_ROUND + number, 1_795_219_200_000_000)
    bare.quality = "A" * (1 + UPDATE_BYTES - len(msgspec.json.encode(bare)))
    return bare


class Served:
    """A node's engine and gateway, without what settles."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        journal = Journal(directory, SystemDisk() if durable else UnsyncedDisk())
        limits = msgspec.structs.replace(
            DEFAULT_LIMITS,
            requests_per_s=UNLIMITED,
            requests_burst=UNLIMITED,
            cancels_per_s=UNLIMITED,
            cancels_burst=UNLIMITED,
        )
        self._pipeline = Pipeline(journal, SystemClock())
        self._desk: Desk = open_desk(self._pipeline, load_catalog(), DOMAIN, limits=limits)
        access = Access(admissions_per_s=UNLIMITED, admissions_burst=UNLIMITED)
        self._server = GatewayServer(self._desk, Health(self._pipeline), HOST, access=access)

    async def run(self) -> None:
        await self._pipeline.start()
        self._fund()
        await self._pipeline.settled()
        await self._server.start()
        await obey(self._server.address[1], {"publish": self.publish, "codec": self.codec})
        await self._server.stop()
        await self._pipeline.close()

    def _fund(self) -> None:
        """What settlement would sequence: markets, and accounts with more than they can spend."""
        catalog, kinds = self._desk.catalog, CommandKind
        for instrument, symbol in enumerate(symbols(), 1):
            self._pipeline.submit(
                Command(
                    kind=kinds.LIST_MARKET,
                    instrument=instrument,
                    order_id=catalog.parse(symbol),
                    price_ticks=BOND_USDC6_PER_LOT,
                    qty_lots=1,
                )
            )
        for account in range(1, ACCOUNTS + 1):
            opened = bytearray(Command(kind=kinds.OPEN_ACCOUNT, account=account).pack())
            opened[OWNER] = trader(account).address_bytes
            self._pipeline.submit(Command._make(COMMAND_STRUCT.unpack(opened)))
            for number, purse in enumerate((Purse.CASH, Purse.BOND), 2 * account - 1):
                self._pipeline.submit(
                    Command(
                        kind=kinds.DEPOSIT,
                        account=account,
                        client_id=number,
                        price_ticks=AMOUNT_USDC6_MAX,
                        side=purse,
                    )
                )
            for instrument in range(1, len(REGIONS) + 1):
                self._pipeline.submit(
                    Command(
                        kind=kinds.DECLARE_CAPACITY,
                        account=account,
                        instrument=instrument,
                        qty_lots=QTY_LOTS_MAX,
                    )
                )

    async def publish(self, asked: dict[str, Any]) -> int:
        """`count` updates of the first market's index, `together` in each turn of the loop."""
        ticker = tickers(self._desk.catalog)[0]
        updates = [update(ticker, number) for number in range(asked["count"])]
        begin_ns = time.monotonic_ns()
        for at in range(0, len(updates), asked["together"]):
            for index in updates[at : at + asked["together"]]:
                self._desk.feed.publish_index(index)
            await written()
        return begin_ns

    async def codec(self, asked: dict[str, list[str]]) -> dict[str, float]:
        """µs to decode one of these requests and to encode one of these acks."""
        requests = [request.encode() for request in asked["requests"]]
        acks = [msgspec.json.decode(ack, type=m.Ack) for ack in asked["acks"]]
        return {
            "decode_us": _each_us(wire.JSON.decode, requests),
            "encode_us": _each_us(wire.JSON.encode, acks),
        }


def _each_us(does: Callable[[Any], object], items: list[Any]) -> float:
    def once() -> float:
        begin_ns = time.perf_counter_ns()
        for item in items:
            does(item)
        return (time.perf_counter_ns() - begin_ns) / 1000 / len(items)

    return statistics.median(once() for _ in range(CODEC_ROUNDS))


if __name__ == "__main__":
    where, how = sys.argv[1:]
    assert how in {"durable", "unsynced"}, __doc__
    run_server(Served(Path(where), durable=how == "durable").run())
