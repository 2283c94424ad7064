"""One node, put together: the page that shows which part gets what, in the order they start.

    chain ─▶ contracts ─▶ engine ◀─ desk and feed ◀─ websocket server
                            ▲  └──▶ settlement ──▶ ledger, vault, price feeds
                            └────── deposits, finality

Invariant: subscribers stand before the engine starts, so that each hears the journal's events
first; the sockets open last and close first. Only this module and `cli` know both the gateway and
settlement.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import stat
import tomllib
from collections.abc import Callable, Generator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from compex_client import messages as m
from compex_client.reads import Settling
from compex_client.units import price_text
from compex_client.wallet import Domain, Wallet

from engine.catalog import load_catalog
from engine.clock import Clock
from engine.index import SpotIndex
from engine.journal import BEGINNING, Journal, SystemDisk, oldest
from engine.pipeline import Pipeline
from engine.port import SpaceMarks
from engine.rejects import CatalogError, CompexError
from engine.replay import warm_up
from gateway import signing, translate
from gateway.audit import AUDIT_FILE, Audit
from gateway.health import Health
from gateway.history import History, Keep
from gateway.keys import KEYS_FILE
from gateway.keys import Keys as SessionKeys
from gateway.limits import NS_PER_S
from gateway.listing import DAY_S, list_market
from gateway.server import GatewayServer
from gateway.session import Desk, open_desk
from gateway.settings import Settings, SettingsError
from gateway.snapshots import Snapshots
from gateway.transport import Access
from gateway.wire import BadRequest
from settlement import database
from settlement.chain import Chain, Funding, Keys, Officers, Options, address_of
from settlement.devchain import EmbeddedChain
from settlement.errors import DatabaseUnavailable, SettlementError
from settlement.fees import GWEI, FeePolicy
from settlement.orders import separator
from settlement.products import settled
from settlement.sealing import Triggers
from settlement.service import Settings as SettlementOptions
from settlement.service import Settlement, Turn
from settlement.signatures import Handed, Signatures, authority_of
from settlement.vault import HORIZON_SECONDS, deposit_of

INDEX_SECONDS: Final = 1.0  # between two index values on the feed
RPC_POLL_SECONDS: Final = 0.5  # a public chain's blocks come slowly
LISTED_AHEAD_S: Final = HORIZON_SECONDS - DAY_S  # whatever the chain's clock says it is

log = logging.getLogger("compex.node")
Progress = Callable[[str], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _silent(_what: str) -> Any:
    yield


class KeptSignatures:
    """Settlement's signatures, as the gateway's sessions know them."""

    def __init__(self, kept: Signatures) -> None:
        self._kept = kept

    def settled(self, product: int) -> tuple[int, int]:
        try:
            return settled(product)
        except CatalogError:  # beyond what the vault can name
            return 0, 0

    async def hand_in(
        self,
        account: int,
        handed: Sequence[signing.Handed],
        signature: bytes,
        key: signing.Authorised | None,
    ) -> signing.Outcome:
        authority = authority_of(*key) if key is not None else None
        orders = [Handed._make(x) for x in handed]
        with _reached():
            outcome = await self._kept.hand_in(account, orders, signature, authority)
            return signing.Outcome._make(outcome)

    async def bodies(self, order_ids: Sequence[int]) -> list[signing.Body]:
        with _reached():
            return [signing.Body._make(x) for x in await self._kept.bodies(order_ids)]

    async def unsigned(self, account: int) -> list[signing.Unsigned]:
        with _reached():
            return [signing.Unsigned._make(x) for x in await self._kept.unsigned(account)]

    async def last_number(self, account: int) -> int:
        with _reached():
            return await self._kept.last_number(account)

    async def suspended(self) -> list[int]:
        with _reached():
            return await self._kept.suspended()

    async def taken_back(self) -> list[tuple[int, int]]:
        with _reached():
            return await self._kept.taken_back()


@contextlib.contextmanager
def _reached() -> Generator[None]:
    try:
        yield
    except DatabaseUnavailable as error:
        raise signing.Unreachable(str(error)) from error


class Node:
    """`open` starts everything but settlement's turns; `run` adds those."""

    def __init__(self, directory: Path, settings: Settings, clock: Clock) -> None:
        self.directory = directory
        self.settings = settings
        self.clock = clock
        self.administrator: Wallet | None = None
        self.embedded: EmbeddedChain | None = None
        self.rpc_url = settings.chain.rpc_url
        self.chain: Chain
        self.engine: Pipeline
        self.index: SpotIndex
        self.desk: Desk
        self.settlement: Settlement
        self.server: GatewayServer
        self._snapshots: Snapshots
        self._stack = AsyncExitStack()
        self._settlement_ended = ""
        self._told: dict[str, tuple[int, int]] = {}

    @classmethod
    async def open(
        cls,
        directory: Path,
        settings: Settings,
        clock: Clock,
        *,
        progress: Progress = _silent,
        partition_ns: int | None = None,
    ) -> "Node":
        """Start every part; what already ran in `directory` goes on where it stopped.

        `partition_ns` shortens the index's five-minute partitions for a demonstration.
        Raises CompexError or SettlementError, with everything closed again.
        """
        node = cls(directory, settings, clock)
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        try:
            await node._start(progress, partition_ns)
        except BaseException:
            await node.close()
            raise
        return node

    async def _start(self, progress: Progress, partition_ns: int | None) -> None:
        with progress("compiling or loading the matching kernel"):
            await asyncio.to_thread(warm_up)
        with progress("starting PostgreSQL"):
            database_url = self.settings.database.url or await self._serve_database()
        with progress("opening the chain"):
            await self._open_chain()
        with progress("deploying or checking the contracts"):
            await self._find_contracts()
        with progress("replaying the journal"):
            await self._start_engine(database_url, partition_ns)
        await self._set_fees()
        await self._list_markets(self.settings.markets.listed)
        await self._catch_up()
        await self._start_server()

    async def _serve_database(self) -> str:
        server = await database.serve(self.directory)
        self._stack.push_async_callback(server.stop)
        return server.url

    async def _open_chain(self) -> None:
        chain = self.settings.chain
        if chain.rpc_url:
            options = Options(
                confirmations=chain.confirmations,
                asks_node=chain.finality == "node",
                poll_seconds=RPC_POLL_SECONDS,
            )
            keys = read_keys(Path(chain.keys_file))
            self.chain = await Chain.connect(chain.rpc_url, keys, options)
        else:
            embedded = await EmbeddedChain.open(self.directory / "chain", self.clock.now_ns)
            self._stack.push_async_callback(embedded.close)
            self.embedded = embedded
            if chain.embedded_rpc_port >= 0:
                with _port_named("chain.embedded_rpc_port", chain.embedded_rpc_port):
                    self.rpc_url = await embedded.serve_rpc(chain.embedded_rpc_port)
            self.chain = await Chain.connect(embedded.provider, embedded.keys)
        self._stack.push_async_callback(self.chain.close)

    async def _find_contracts(self) -> None:
        chain, deployer = self.settings.chain, address_of(self.chain.keys.deployer)
        officers = Officers(
            _address(chain.arbiter) or deployer, _address(chain.pauser) or deployer
        )  # fmt: skip
        await self.chain.deploy_or_load(self.directory, _address(chain.token), officers)

    async def _start_engine(self, database_url: str, partition_ns: int | None) -> None:
        catalog = load_catalog()
        journal, marks = Journal(self.directory / "journal", SystemDisk()), self.settings.journal
        keys, audit = SessionKeys(self.directory / KEYS_FILE), Audit(self.directory / AUDIT_FILE)
        self._stack.push_async_callback(keys.close)
        self._stack.callback(audit.close)
        self.engine = Pipeline(
            journal, self.clock, SpaceMarks(marks.free_bytes_low, marks.free_bytes_too_low)
        )
        history = self._open_history(journal.directory)
        self._stack.push_async_callback(history.close)  # behind the engine, to have its last events
        self._stack.push_async_callback(self.engine.close)
        self.engine.when_stopped(lambda why: log.error("the engine has stopped: %s", why))
        signatures = self._open_signatures(database_url)
        self.desk = open_desk(
            self.engine,
            catalog,
            Domain(self.chain.chain_id, self.chain.vault),
            administrator=self._administrator(),
            limits=self.settings.limits.limits(),
            time_ns=self.clock.now_ns,
            keys=keys,
            audit=audit,
            history=history,
            signatures=KeptSignatures(signatures),
            sign_within_ms=self.settings.settlement.sign_within_seconds * 1_000,
            listed_ahead_s=LISTED_AHEAD_S,
        )
        self._stack.push_async_callback(self.desk.absence.close)
        if self.desk.signing is not None:
            self._stack.push_async_callback(self.desk.signing.close)
        self.index = SpotIndex(catalog, partition_ns) if partition_ns else SpotIndex(catalog)
        wanted = self.settings.settlement
        self.settlement = await Settlement.open(
            SettlementOptions(
                turn_seconds=wanted.turn_seconds,
                turns_per_reconciliation=wanted.turns_per_reconciliation,
                batches=Triggers(
                    fills_max=wanted.fills_per_batch,
                    wait_ns=wanted.batch_wait_seconds * 1_000_000_000,
                    value_usdc6=wanted.batch_value_dollars * 1_000_000,
                ),
                fees=FeePolicy(
                    cap_max_wei=wanted.fee_cap_gwei_max * GWEI,
                    tip_max_wei=wanted.tip_gwei_max * GWEI,
                    stuck_ns=wanted.raise_fee_seconds * 1_000_000_000,
                ),
                sign_within_ns=wanted.sign_within_seconds * 1_000_000_000,
            ),
            self.engine,
            self.chain,
            database_url,
            self.clock.now_ns,
            self.index,
        )
        self._stack.push_async_callback(self.settlement.close)
        await self.engine.start()
        history.check(self.engine.ready().event_number)
        self._snapshots = Snapshots(
            self.directory / "journal", self.settings.journal, self.engine
        )  # fmt: skip

    def _open_signatures(self, database_url: str) -> Signatures:
        """They connect when they are needed first, which is behind settlement."""
        domain = separator(self.chain.chain_id, self.chain.vault)
        kept = Signatures(database_url, domain, self.engine.owner_of, self.clock.now_ns)
        self._stack.push_async_callback(kept.close)
        return kept

    def _open_history(self, journal: Path) -> History:
        """Where the journal's beginning is gone, a lost file begins anew where the start does."""
        gateway = self.settings.gateway
        return History(
            self.directory / "history.sqlite3",
            Keep(gateway.private_messages_kept, gateway.private_days_kept),
            time_ns=self.clock.now_ns,
            from_anywhere=oldest(journal) != BEGINNING,
        )

    def _administrator(self) -> bytes:
        configured = _address(self.settings.gateway.administrator)
        if configured is not None:
            return configured
        self.administrator = Wallet(_own_key(self.directory / "administrator.key"))
        return self.administrator.address_bytes

    async def _set_fees(self) -> None:
        """The rates of the settings' tiers; what is so already is left alone."""
        fees = self.settings.fees
        for tier, rates in enumerate(zip(fees.maker_ppm, fees.taker_ppm, strict=True)):
            if self.engine.rates(tier) != rates:
                self.engine.submit(translate.set_fees(tier, *rates))
        await self.engine.settled()

    async def _list_markets(self, symbols: tuple[str, ...]) -> None:
        """List what is missing, as the catalog has it; not what it is too late or too early for.
        Raises CatalogError."""
        catalog = load_catalog()
        listed = {market.product for market in self.engine.markets()}
        for symbol in symbols:
            product = catalog.parse(symbol)
            if product in listed:
                continue
            plain = m.Market(id=1, action="list", market=symbol)
            now_s, instrument = self.clock.now_ns() // NS_PER_S, self.desk.next_instrument()
            try:
                command = list_market(catalog, plain, product, instrument, now_s, LISTED_AHEAD_S)
            except BadRequest as bad:
                log.warning("%s is not listed: %s", symbol, bad.detail)
                continue
            self.engine.submit(command)
            await self.engine.settled()

    async def _catch_up(self) -> None:
        """Hear of what happened on chain meanwhile, exits above all, before anybody may trade."""
        try:
            await self.settlement.turn()
        except SettlementError as error:
            log.warning("settlement starts late: %s", error)

    async def _start_server(self) -> None:
        gateway = self.settings.gateway
        health = Health(self.engine, self._settling)
        access = Access(
            gateway.connections,
            gateway.connections_per_address,
            gateway.origins,
            gateway.tls_certificate,
            gateway.tls_key,
        )
        self.server = GatewayServer(self.desk, health, gateway.host, gateway.port, access=access)
        with _port_named("gateway.port", gateway.port):
            await self.server.start()
        self._stack.push_async_callback(self.server.stop)

    def _settling(self) -> Settling:
        settlement = self.settlement
        halted = settlement.halted or self._settlement_ended
        return Settling(halted, settlement.waiting, settlement.unbooked_events)

    @property
    def url(self) -> str:
        """Of the page; the websocket is at the same address under /ws."""
        host, port = self.server.address
        scheme = "https" if self.settings.gateway.tls_certificate else "http"
        return f"{scheme}://{host}:{port}"

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    async def turn(self) -> Turn:
        """One pass of settlement, and the index on the feed."""
        turn = await self.settlement.turn()
        self.tell_index()
        return turn

    def tell_index(self) -> None:
        """Put the index values that changed on the public feed."""
        catalog = load_catalog()
        for value in self.index.values(self.clock.now_ns()):
            seen = (value.value_ticks, value.window_end_ns)
            if self._told.get(value.series) == seen:
                continue
            self._told[value.series] = seen
            self.desk.feed.publish_index(
                m.Index(
                    market=catalog.ticker(value.product),
                    price=price_text(value.value_ticks),
                    quality=value.quality,
                    round=value.window_end_ns // 1_000_000_000,
                    time_us=value.window_end_ns // 1_000,
                )
            )

    async def run(self) -> None:
        """Settle and publish the index until cancelled.

        When settlement can only go on with a person's help, trading and the index go on without
        it for a while, and `/ready` says why: until its queue is full, and only cancels are taken.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle_forever())
            tasks.create_task(self._tell_index_forever())
            tasks.create_task(self._snapshots.run())

    async def _settle_forever(self) -> None:
        try:
            await self.settlement.run()
        except (SettlementError, CompexError) as error:
            self._settlement_ended = f"{type(error).__name__}: {error}"
            log.error(
                "settlement has ended, orders are taken until its queue is full: %s",
                self._settlement_ended,
            )

    async def _tell_index_forever(self) -> None:
        while True:
            self.tell_index()
            await asyncio.sleep(INDEX_SECONDS)

    async def fund(self, fundings: list[Funding]) -> None:
        """Deposit test USDC on chain from each wallet; what was deposited before is not again.

        So a run that was cut off half-way can ask for the same again.
        """
        deposited = await self._deposited()
        missing: list[Funding] = []
        for funding in fundings:
            cash, bond = deposited.get(address_of(funding.key), (0, 0))
            rest = Funding(funding.key, funding.cash_usdc6 - cash, funding.bond_usdc6 - bond)
            if rest.cash_usdc6 or rest.bond_usdc6:
                missing.append(rest)
        if missing:
            await self.chain.fund(missing)

    async def _deposited(self) -> dict[bytes, tuple[int, int]]:
        """(cash, bond) in µUSDC that each wallet ever deposited, by address."""
        sums: dict[bytes, tuple[int, int]] = {}
        for log in await self.chain.vault_logs(0, await self.chain.final_block()):
            if log.name != "Deposited":
                continue
            deposit = deposit_of(log)
            cash, bond = sums.get(deposit.owner, (0, 0))
            if deposit.purse:
                bond += deposit.amount_usdc6
            else:
                cash += deposit.amount_usdc6
            sums[deposit.owner] = (cash, bond)
        return sums

    async def close(self) -> None:
        """Sockets first, then settlement, engine, chain and database."""
        await self._stack.aclose()


@contextlib.contextmanager
def _port_named(setting: str, port: int) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{setting} = {port} cannot be listened on: {error}") from error


def _address(text: str) -> bytes | None:
    return bytes.fromhex(text[2:]) if text else None


def _own_key(path: Path) -> bytes:
    """The key in this file, made at the first start, readable by its owner alone."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
    return bytes.fromhex(path.read_text("ascii").strip())


def read_keys(path: Path) -> Keys:
    """The exchange's keys from a TOML file. Raises SettingsError, which never shows a key."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        if set(table) != set(Keys._fields):
            raise SettingsError(f"{path} must have exactly: {', '.join(Keys._fields)}")
        keys = Keys(*(bytes.fromhex(str(table[name]).removeprefix("0x")) for name in Keys._fields))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is not a file of hex keys ({type(error).__name__})") from None
    if any(len(key) != 32 for key in keys):
        raise SettingsError(f"{path}: a key has 32 bytes")
    return keys


__all__ = ["Funding", "Node", "SettlementError", "read_keys"]
