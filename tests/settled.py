"""A whole node without the gateway, for tests: the real engine on a journal, the embedded chain
with the real contracts, a database, and settlement between them. `start` and `stop` may be
repeated on the same directory; the chain goes on living in between, as other people's would."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import asyncpg
from eth_account import Account

from benchmarks.vault import DISPUTED
from engine.catalog import load_catalog
from engine.clock import ScriptedClock
from engine.index import SpotIndex
from engine.journal import Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import Command, CommandKind, Event, EventKind, Side, TimeInForce
from settlement.abi import Interface
from settlement.chain import (
    Chain,
    Funding,
    Options,
    SignedTransaction,
    address_of,
    checksum,
)
from settlement.devchain import EmbeddedChain
from settlement.orders import separator
from settlement.service import Settings, Settlement
from settlement.vault import DISPUTES, VAULT
from tests.signed import Placed, sign_all

START_NS = 1_795_219_200_000_000_000
SECOND_NS = 1_000_000_000
SYMBOL = "nv.h100-sxm-80g.x8.ib|us-e|B|SPOT"
BOND_USDC6_PER_LOT = 1_000
INSTRUMENT = 0
DOLLAR = 1_000_000  # µUSDC
EXIT_DELAY_NS = 8 * 24 * 3600 * SECOND_NS  # a day above the vault's EXIT_DELAY


def key(number: int) -> bytes:
    """The private key of test wallet `number`."""
    return number.to_bytes(32, "big")


def _pass(name: str) -> None:
    pass


class Between:
    """Stands before a chain or a port: tells the test of every call, and the test may raise.

    `before` and `after` are given the method's name, around the call.
    """

    def __init__(
        self, target: object, before: Callable[[str], None], after: Callable[[str], None]
    ) -> None:
        self._target = target
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if not callable(method):
            return method

        def called(*arguments: Any, **named: Any) -> Any:
            self._before(name)
            answer: Any = method(*arguments, **named)
            if not hasattr(answer, "__await__"):
                self._after(name)
                return answer

            async def awaited() -> Any:
                value = await answer
                self._after(name)
                return value

            return awaited()

        return called


async def transact(
    chain: Chain, embedded: EmbeddedChain, private_key: bytes, to: bytes, data: bytes
) -> None:
    """A wallet's own transaction, mined."""
    sender = "0x" + address_of(private_key).hex()
    count = await embedded.request("eth_getTransactionCount", [sender, "latest"])
    nonce = int(cast("str", count), 16)
    base_fee = int(cast("str", await embedded.request("eth_gasPrice", [])), 16)
    fields = {
        "chainId": chain.chain_id, "nonce": nonce, "gas": 500_000, "value": 0,
        "maxFeePerGas": base_fee + 1, "maxPriorityFeePerGas": 1, "to": checksum(to),
        "data": data,
    }  # fmt: skip
    signed = Account.sign_transaction(fields, private_key)
    raw, digest = bytes(signed.raw_transaction), bytes(signed.hash)
    await chain.send(SignedTransaction(nonce, raw, digest))
    assert (await chain.wait(digest)).succeeded


class Node:
    """One node; tests reach into its parts."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.database_url = database_url
        self.clock = ScriptedClock(START_NS)
        self.settings = Settings()
        self.unsigned: list[Placed] = []  # orders just accepted
        self.wallets: set[int] = set()  # that have deposited
        self.embedded: EmbeddedChain
        self.chain: Chain
        self.pipeline: Pipeline
        self.settlement: Settlement

    @classmethod
    async def begin(
        cls, directory: Path, database_url: str, confirmations: int = 0, rpc_url: str = ""
    ) -> "Node":
        """With the contracts deployed, on the embedded chain unless there is a URL; the engine is
        not started."""
        node = cls(directory, database_url)
        options = Options(confirmations=confirmations)
        node.embedded = await EmbeddedChain.open(None, node.clock.now_ns)
        provider = rpc_url or node.embedded.provider
        node.chain = await Chain.connect(provider, node.embedded.keys, options)
        await node.chain.deploy_or_load(None)
        return node

    async def start(
        self,
        before: Callable[[str], None] | None = None,
        after: Callable[[str], None] | None = None,
    ) -> None:
        """Start the engine and settlement. What settlement asks of the engine and of the chain
        goes past `before` and `after`, if a test wants to stand in its way."""
        self.pipeline = Pipeline(Journal(self.directory / "journal", SystemDisk()), self.clock)
        self.pipeline.subscribe(self._hear)
        port, chain = self.pipeline, self.chain
        if before or after:
            gates = (before or _pass, after or _pass)
            port, chain = cast("Any", Between(port, *gates)), cast("Any", Between(chain, *gates))
        self.settlement = await Settlement.open(
            self.settings, port, chain, self.database_url, self.clock.now_ns,
            SpotIndex(load_catalog()),
        )  # fmt: skip
        await self.pipeline.start()

    async def stop(self) -> None:
        """As a crash would, but for giving back locks and connections."""
        await self.settlement.close()
        await self.pipeline.close()

    async def end(self) -> None:
        await self.stop()
        await self.chain.close()
        await self.embedded.close()

    async def fund(self, cash: dict[int, int], bond: dict[int, int] | None = None) -> None:
        """Deposit µUSDC on chain, by wallet number."""
        bond = bond or {}
        wallets = sorted(set(cash) | set(bond))
        self.wallets.update(wallets)
        await self.chain.fund([Funding(key(w), cash.get(w, 0), bond.get(w, 0)) for w in wallets])

    async def give_to_vault(self, amount_usdc6: int) -> None:
        """Tokens that arrive without a deposit, by a transaction of the settler's own key."""
        mint = Interface("TestUSDC").encode("mint", self.chain.vault, amount_usdc6)
        await self._transact(self.embedded.keys.settler, self.chain.token, mint)

    async def exit(self, wallet: int) -> None:
        """The wallet takes its free money out of the vault without us, a week later."""
        await self.request_exit(wallet)
        self.clock.advance_to(self.clock.now_ns() + EXIT_DELAY_NS)
        await self.finish_exit(wallet)

    async def request_exit(self, wallet: int) -> None:
        await self.call_vault(wallet, "requestExit")

    async def cancel_exit(self, wallet: int) -> None:
        await self.call_vault(wallet, "cancelExit")

    async def finish_exit(self, wallet: int) -> None:
        await self.call_vault(wallet, "finishExit")

    async def call_vault(self, wallet: int, function: str, *arguments: object) -> None:
        """By the wallet's own transaction, to either half of the vault."""
        await self.tell_vault(key(wallet), function, *arguments)

    async def tell_vault(self, private_key: bytes, function: str, *arguments: object) -> None:
        half = DISPUTES if function in DISPUTED else VAULT
        await self._transact(private_key, self.chain.vault, half.encode(function, *arguments))

    async def mint(self, wallet: int, amount_usdc6: int) -> None:
        """Test USDC in a wallet that the vault may take it from, and ether to move it."""
        await self.chain.fund([Funding(key(wallet), DOLLAR, 0)])  # its gas, and an account
        owner, token = address_of(key(wallet)), Interface("TestUSDC")
        for call in (("mint", owner, amount_usdc6), ("approve", self.chain.vault, amount_usdc6)):
            await self._transact(key(wallet), self.chain.token, token.encode(*call))

    async def _transact(self, private_key: bytes, to: bytes, data: bytes) -> None:
        await transact(self.chain, self.embedded, private_key, to, data)

    def account(self, wallet: int) -> int:
        return self.pipeline.account_of(address_of(key(wallet)))

    async def submit(self, **fields: int) -> int:
        """Sequence one command and wait until it is published; returns its sequence. An order that
        is accepted is signed at once, as a client would."""
        sequence = self.pipeline.submit(Command(**fields)).sequence
        await self.pipeline.settled()
        await self.sign()
        return sequence

    def _hear(self, batch: Batch) -> None:
        if not batch.replayed:
            product_of = {x.instrument: x.product for x in self.pipeline.markets()}
            self.unsigned += [
                Placed(e.account, e.order_id, e.side == Side.BUY, e.instrument,
                       product_of[e.instrument])
                for e in batch.events
                if e.kind == EventKind.ACCEPTED
            ]  # fmt: skip

    async def sign(self) -> None:
        """Hand in the signatures of the orders accepted since the last time."""
        if self.unsigned:
            placed, self.unsigned = self.unsigned, []
            keys = {self.account(wallet): key(wallet) for wallet in self.wallets}
            domain = separator(self.chain.chain_id, self.chain.vault)
            await sign_all(self.database_url, domain, keys, placed)

    @asynccontextmanager
    async def beside(self) -> AsyncGenerator[Any]:
        """A connection to the database beside the one that settles."""
        connection: Any = await cast("Any", asyncpg.connect)(self.database_url)
        try:
            yield connection
        finally:
            await connection.close()

    async def list_market(self, wallet: int, capacity_lots: int) -> None:
        """The one market, with capacity declared by this seller."""
        await self.submit(
            kind=CommandKind.LIST_MARKET,
            instrument=INSTRUMENT,
            order_id=load_catalog().parse(SYMBOL),
            price_ticks=BOND_USDC6_PER_LOT,
            qty_lots=1,
        )
        await self.declare(wallet, capacity_lots)

    async def set_fees(self, maker_ppm: int, taker_ppm: int) -> None:
        """For everybody's orders that come from now on."""
        await self.submit(kind=CommandKind.SET_FEES, order_id=maker_ppm | taker_ppm << 16)

    async def declare(self, wallet: int, capacity_lots: int) -> None:
        await self.submit(
            kind=CommandKind.DECLARE_CAPACITY,
            account=self.account(wallet),
            instrument=INSTRUMENT,
            qty_lots=capacity_lots,
        )

    async def order(self, wallet: int, side: Side, price_ticks: int, qty_lots: int) -> int:
        return await self.submit(
            kind=CommandKind.NEW_ORDER,
            account=self.account(wallet),
            instrument=INSTRUMENT,
            side=side,
            price_ticks=price_ticks,
            qty_lots=qty_lots,
            time_in_force=TimeInForce.GTC,
        )

    async def withdraw(self, wallet: int, amount_usdc6: int) -> int:
        return await self.submit(
            kind=CommandKind.WITHDRAW, account=self.account(wallet), price_ticks=amount_usdc6
        )


def heard(node: Node) -> list[Event]:
    """Every event from now on."""
    events: list[Event] = []
    node.pipeline.subscribe(lambda batch: events.extend(batch.events))
    return events


async def turns_and_blocks(node: Node, count: int) -> None:
    """Reconciled after each."""
    for _ in range(count):
        await node.give_to_vault(1)  # makes a block
        await node.settlement.turn()
        report = await node.settlement.reconcile()
        assert report.reconciled, report.gaps
