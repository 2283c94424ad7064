"""What settlement adds to a fill before the chain has it: booked, sealed, signed and sent.

    python -m benchmarks.settlement [--runs N] [--dir DIR] [--json PATH] [--quick] [SECTION ...]

Each section measures ours and a bare one in turns within each round (see `table`). Speed never
fails the command, a wrong sum or root does. To add a figure, write a `Section` and name it in
SECTIONS.

build: full batches of the next vault, from arrays to bytes and root; beside it the same root by a
library's hash, node by node. Releases of the same leases.
post: fills into the ledger, synced; beside it the same rows copied into tables that check nothing.
send: fills in the ledger to batches that are sealed and stored, signed, and taken by a node that
does nothing; beside it signing and sending alone.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak as library_hash
from rich.console import Console

from benchmarks.gas import flow
from benchmarks.match_all import machine
from benchmarks.table import (
    TABLE_COLUMNS,
    Rounds,
    Row,
    Section,
    parse_sections,
    section_parser,
    show,
)
from benchmarks.vault import Fill, key, levels, sign, wallet
from engine.catalog import load_catalog
from engine.records import Event, EventKind, Purse, Side
from settlement import batch, releases
from settlement import database as db
from settlement.abi import Interface
from settlement.batch import FILL, FILLS_MAX, Fills
from settlement.ledger import Ledger, Numbered
from settlement.orders import Order, order_hashes, separator, signed_hash
from settlement.products import settled
from settlement.signatures import Handed, Signatures

RUNS: Final = 5
SEED: Final = 7
ACCOUNTS: Final = 200
BATCHES: Final = 20  # built in a round
POSTED: Final = 40_960  # fills in a round
EVENTS_PER_POSTING: Final = 4_096  # as settlement's service has it
SENT: Final = 5_000
QUICK_DIVISOR: Final = 50
BUILT_PER_SECOND_MIN: Final = 200_000
POSTED_PER_SECOND_MIN: Final = 20_000
SENT_SECONDS_MAX: Final = 1.0
CASH_USDC6: Final = 10**15
PRODUCT: Final = load_catalog().parse("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT")
SETTLER: Final = (0xC0FFEE).to_bytes(32, "big")
VAULT: Final = Interface("VaultV2")
ADDRESS: Final = bytes(range(20))
DOMAIN: Final = separator(1, ADDRESS)
NOW_S: Final = 1_796_000_000
VALID_UNTIL_S: Final = NOW_S + 86_400
BARE: Final = """
    CREATE TABLE bare_transfer AS SELECT * FROM transfer WITH NO DATA;
    CREATE TABLE bare_fill AS SELECT * FROM fill WITH NO DATA;
"""


def _plain(count: int) -> list[Fill]:
    """As they come: buyers in no order."""
    terms = settled(PRODUCT)
    fills = [f._replace(**terms._asdict()) for f in flow(count, ACCOUNTS, SEED)]
    return [fills[i] for i in np.random.default_rng(SEED).permutation(count)]


class BuildSection:
    """Batches and releases, from arrays to bytes and root."""

    def __init__(self, scale: int) -> None:
        plain = _plain(FILLS_MAX)
        self._fills: Fills = np.array([tuple(fill) for fill in plain], FILL)
        self._numbers = np.arange(1, FILLS_MAX + 1)
        self._times = max(BATCHES // scale, 1)
        self._sealed = batch.seal(self._fills, self._numbers)
        assert self._sealed.amount_usdc6 == sum(fill.cost for fill in plain)
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        count = len(self._sealed.event_numbers)
        runs = [("seal", self._seal), ("library", self._library), ("release", self._release)]
        for name, run in runs if number % 2 else runs[::-1]:
            began = time.perf_counter()
            times = run()
            self._rounds.add(name, times * count / (time.perf_counter() - began))

    def _seal(self) -> int:
        for _ in range(self._times):
            assert batch.seal(self._fills, self._numbers).root == self._sealed.root
        return self._times

    def _library(self) -> int:
        packed = self._sealed.packed
        leaves = [
            library_hash(i.to_bytes(2, "big") + packed[30 * i : 30 * i + 30])
            for i in range(len(packed) // 30)
        ]
        assert levels(leaves)[-1][0] == self._sealed.root
        return 1

    def _release(self) -> int:
        fills = batch.unpack(self._sealed.packed)
        for _ in range(self._times):
            paid = batch.notionals_usdc6(fills)
            records = releases.records_of(np.arange(len(fills)), fills, paid)
            made = releases.seal(1, records)
            assert len(made.packed) == len(fills) * releases.RECORD_BYTES
        return self._times

    def rows(self) -> list[Row]:
        built = self._rounds.median("seal")
        return [
            Row(
                "batches: sorted, packed, bounded, hashed", built, "fills/s",
                self._rounds.median("library"), self._rounds.ratio("seal", "library"),
                f"at least {BUILT_PER_SECOND_MIN:,}", built >= BUILT_PER_SECOND_MIN,
            ),
            Row("  releases of them", self._rounds.median("release"), "leases/s"),
        ]  # fmt: skip


class Books:
    """A ledger with funded accounts, and fills to book. Every order is signed for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runner = asyncio.Runner()
        self._server: db.Server
        self.database: db.Database
        self.ledger: Ledger
        self._order = 1
        self.run(self._open())

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    async def _open(self) -> None:
        self._server = await db.serve(self._directory)
        self.database = await db.connect(self._server.url)
        self.ledger = await Ledger.open(self.database)
        opened = [_event(EventKind.ACCOUNT_OPENED, n, 0) for n in range(1, ACCOUNTS + 1)]
        paid = [_event(EventKind.DEPOSITED, n, CASH_USDC6, n) for n in range(1, ACCOUNTS + 1)]
        await self.ledger.post(self._numbered([*opened, *paid]))
        await self.ledger.list_products([(0, PRODUCT)])
        await self.database.execute(BARE)

    def _numbered(self, events: list[Event]) -> list[Numbered]:
        first = self.ledger.watermark.event_number + 1
        return [Numbered(n, e._replace(sequence=n)) for n, e in enumerate(events, first)]

    def filled(self, plain: Sequence[Fill]) -> list[Numbered]:
        """The events of these fills, each of two orders of their own."""
        events = [
            Event(
                0, 0, self._order + 2 * i, self._order + 2 * i + 1, f.price, f.qty, f.seller_fee,
                f.buyer_fee, f.buyer, f.seller, 0, EventKind.FILL, Side.BUY, 0,
            )
            for i, f in enumerate(plain)
        ]  # fmt: skip
        self._order += 2 * len(plain)
        return self._numbered(events)

    async def sign(self, filled: Sequence[Numbered]) -> None:
        """Each account all its orders at once, as exactly as they were filled."""
        handed: dict[int, list[Handed]] = {}
        for _, e in filled:
            for account, order, is_buy in (
                (e.account, e.order_id, True), (e.counter_account, e.reference, False)
            ):  # fmt: skip
                fee_ppm = e.taker_fee_ppm if is_buy else e.maker_fee_ppm
                handed.setdefault(account, []).append(
                    Handed(order, order, PRODUCT, 0, is_buy, e.price_ticks, e.qty_lots, fee_ppm,
                           VALID_UNTIL_S)
                )  # fmt: skip
        signatures = Signatures(self._server.url, DOMAIN, wallet, lambda: NOW_S * 10**9)
        for account, orders in handed.items():
            outcome = await signatures.hand_in(account, orders, _signature(account, orders))
            assert outcome.reject is None, outcome
        await signatures.close()

    async def post(self, filled: Sequence[Numbered]) -> None:
        for start in range(0, len(filled), EVENTS_PER_POSTING):
            await self.ledger.post(filled[start : start + EVENTS_PER_POSTING])

    async def close(self) -> None:
        await self.database.close()
        await self._server.stop()

    def end(self) -> None:
        self.run(self.close())
        self._runner.close()


def _signature(account: int, handed: Sequence[Handed]) -> bytes:
    signed = [
        Order(account, x.is_buy, *settled(PRODUCT), x.price_ticks, x.qty_lots, x.number,
              x.fee_ppm_max, x.valid_until_s)
        for x in handed
    ]  # fmt: skip
    return sign(key(account), DOMAIN, signed_hash(account, order_hashes(signed)))


def _event(kind: int, account: int, amount: int, reference: int = 0) -> Event:
    return Event(0, 0, 0, reference, amount, 0, 0, 0, account, 0, 0, kind, Purse.CASH, 0)


class PostSection:
    """Fills into the ledger, every posting synced."""

    def __init__(self, directory: Path, scale: int) -> None:
        self._books = Books(directory)
        self._plain = _plain(max(POSTED // scale, 100))
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        for name in ("ledger", "bare") if number % 2 else ("bare", "ledger"):
            filled = self._books.filled(self._plain)
            run = self._books.post if name == "ledger" else self._copy
            rows = filled if name == "ledger" else self._rows(filled)
            began = time.perf_counter()
            self._books.run(run(rows))
            self._rounds.add(name, len(filled) / (time.perf_counter() - began))

    def _rows(self, filled: Sequence[Numbered]) -> Any:
        """As the ledger copies them, made beforehand."""
        transfers = [
            (n, 0, n, 0, 0, "fill", n, e.account, "cash", e.account, "pending", 1, 0)
            for n, e in filled
        ]
        fills = [
            (n, n, 0, 0, e.order_id, e.reference, e.account, e.counter_account, e.account,
             e.counter_account, e.price_ticks, e.qty_lots, 500, 200, False)
            for n, e in filled
        ]  # fmt: skip
        return transfers, fills

    async def _copy(self, rows: Any) -> None:
        transfers, fills = rows
        database = self._books.database
        columns = (
            "event_number", "sequence", "time_ns", "instrument", "taker_order_id",
            "maker_order_id", "taker", "maker", "buyer", "seller", "price_ticks", "qty_lots",
            "buyer_fee_ppm", "seller_fee_ppm", "resold",
        )  # fmt: skip
        every = (
            "event_number", "shard", "sequence", "ordinal", "time_ns", "kind", "reference",
            "from_account", "from_bucket", "to_account", "to_bucket", "amount_usdc6", "line",
        )  # fmt: skip
        for start in range(0, len(transfers), EVENTS_PER_POSTING):
            part = slice(start, start + EVENTS_PER_POSTING)
            async with database.transaction():
                await database.copy("bare_transfer", every, transfers[part])
                await database.copy("bare_fill", columns, fills[part])

    def rows(self) -> list[Row]:
        self._books.run(self._check())
        self._books.end()
        posted = self._rounds.median("ledger")
        return [
            Row(
                "ledger: fills booked and synced", posted, "fills/s", self._rounds.median("bare"),
                self._rounds.ratio("ledger", "bare"), f"at least {POSTED_PER_SECOND_MIN:,}",
                posted >= POSTED_PER_SECOND_MIN,
            )
        ]  # fmt: skip

    async def _check(self) -> None:
        assert await self._books.ledger.trial_balance() == (0, 0, 0)


class Node:
    """Takes a request and says that it has it; knows nothing of what is in it."""

    def __init__(self) -> None:
        self.taken = 0

    async def serve(self) -> tuple[asyncio.Server, int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while size := int.from_bytes(await reader.read(4), "big"):
            request = json.loads(await reader.readexactly(size))
            self.taken += len(request["params"][0])
            writer.write(b"\1")
        writer.close()


class SendSection:
    """From fills in the ledger to transactions that a node has taken."""

    def __init__(self, directory: Path, scale: int) -> None:
        self._books = Books(directory)
        self._plain = _plain(max(SENT // scale, 100))
        self._batches = 0
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        del number  # what is sent alone has to be sealed before
        filled = self._books.filled(self._plain)
        self._books.run(self._books.post(filled))
        self._books.run(self._books.sign(filled))
        self._books.run(self._round())

    async def _round(self) -> None:
        node = Node()
        server, port = await node.serve()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        sealed: list[batch.Sealed] = []
        while made := await self._seal():
            sealed.append(made)
            await self._send(made, reader, writer)
        self._rounds.add("all", time.perf_counter() - began)
        assert sum(len(made.event_numbers) for made in sealed) == len(self._plain)
        assert sum(made.amount_usdc6 for made in sealed) == sum(f.cost for f in self._plain)
        began = time.perf_counter()
        for made in sealed:
            await self._send(made, reader, writer)
        self._rounds.add("send", time.perf_counter() - began)
        writer.close()
        server.close()
        await server.wait_closed()
        assert node.taken > 2 * 2 * sum(len(made.packed) for made in sealed), "in hexadecimal"

    async def _seal(self) -> batch.Sealed | None:
        """As the outbox does: what is sealed is stored before anything follows from it."""
        fills, numbers = await self._books.ledger.unsealed_fills(FILLS_MAX, NOW_S)
        if not len(fills):
            return None
        made = batch.seal(fills, numbers)
        self._batches += 1
        database = self._books.database
        async with database.transaction():
            await database.execute(
                "INSERT INTO batch VALUES ($1, $2, $3, $4, $5, 1)",
                *(self._batches, made.packed, made.root, len(made.event_numbers)),
                made.amount_usdc6,
            )
            await database.execute(
                "UPDATE fill SET batch_id = $1"
                " WHERE batch_id IS NULL AND event_number = ANY($2::bigint[])",
                *(self._batches, made.event_numbers),
            )
        return made

    async def _send(
        self, made: batch.Sealed, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fields = {
            "chainId": 1, "nonce": self._batches, "gas": made.gas, "maxFeePerGas": 10**9,
            "maxPriorityFeePerGas": 1, "to": to_checksum_address(ADDRESS), "value": 0,
            "data": VAULT.encode("settle", self._batches, made.packed),
        }  # fmt: skip
        raw = Account.sign_transaction(fields, SETTLER).raw_transaction
        request = {"method": "eth_sendRawTransaction", "params": ["0x" + raw.hex()]}
        body = json.dumps(request).encode()
        writer.write(len(body).to_bytes(4, "big") + body)
        await reader.readexactly(1)

    def rows(self) -> list[Row]:
        self._books.end()
        seconds = self._rounds.median("all")
        return [
            Row(
                f"{len(self._plain):,} fills: sealed, stored, signed, sent", seconds, "s",
                self._rounds.median("send"), self._rounds.ratio("all", "send"),
                f"at most {SENT_SECONDS_MAX:g} s", seconds <= SENT_SECONDS_MAX,
            )
        ]  # fmt: skip


SECTIONS: Final = ("build", "post", "send")


def _section(name: str, directory: Path, scale: int) -> Section:
    if name == "build":
        return BuildSection(scale)
    if name == "post":
        return PostSection(directory, scale)
    return SendSection(directory, scale)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    quick = "cap all sizes: shows that it works, measures nothing"
    parser = section_parser("settlement", SECTIONS, RUNS, quick)
    return parse_sections(parser, SECTIONS, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    progress = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    for name in options.sections or SECTIONS:
        with tempfile.TemporaryDirectory(dir=options.dir) as directory:
            progress.print(f"{name}: prepare")
            section = _section(name, Path(directory), QUICK_DIVISOR if options.quick else 1)
            for number in range(options.runs):
                progress.print(f"{name}: round {number + 1} of {options.runs}")
                section.round(number)
            rows += section.rows()
    about = machine(None)
    console = Console(width=TABLE_COLUMNS, highlight=False)
    console.print(f"{about['cpu']}, medians of {options.runs} interleaved runs")
    console.print("QUICK: sizes are capped, the figures say nothing\n" if options.quick else "")
    show(console, rows)
    if options.json is not None:
        measured = {
            "machine": about,
            "runs": options.runs,
            "quick": options.quick,
            "rows": [row._asdict() for row in rows],
            "within": all(row.within is not False for row in rows),
        }
        options.json.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
