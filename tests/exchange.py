"""A whole exchange for tests: the real engine on a journal in a temporary directory, the real
gateway, and, where a test wants one, the real server on loopback. Settlement's part (accounts and
deposits) is played by sequencing its commands."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from compex_client import messages as m
from compex_client.wallet import Domain, Wallet

from engine.catalog import load_catalog
from engine.clock import ScriptedClock
from engine.journal import Disk, Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.records import COMMAND_STRUCT, Command, CommandKind, Purse
from gateway.audit import AUDIT_FILE, Audit
from gateway.health import Health
from gateway.history import History, Keep
from gateway.keys import Keys
from gateway.limits import DEFAULT_LIMITS, Outbox
from gateway.server import GatewayServer
from gateway.session import Desk, Session, open_desk
from gateway.signing import Signatures
from gateway.transport import OPEN_ACCESS, Access
from gateway.wire import JSON, Codec
from tests.disks import patience
from tests.frames import frames_in

DOMAIN = Domain(chain_id=31337, vault=bytes.fromhex("c0" * 20))
SYMBOL = "nv.h100-sxm-80g.x8.ib|us-e|B|SPOT"
TICKER = load_catalog().ticker(load_catalog().parse(SYMBOL))
START_NS = 1_795_219_200_000_000_000


def wallet(number: int) -> Wallet:
    """The same wallet for the same number, every time."""
    return Wallet(number.to_bytes(32, "big"))


ADMINISTRATOR = wallet(1)


class Exchange:
    """One running node without settlement."""

    def __init__(self, pipeline: Pipeline, desk: Desk, clock: ScriptedClock) -> None:
        self.port = pipeline
        self.desk = desk
        self.clock = clock
        self.codec = JSON  # of conversations, where nothing else is said
        self.deposits = 0
        self._stopped = False

    async def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            await self.port.close()
            await self.desk.close()

    async def open_account(
        self, account: int, *, cash_usdc6: int = 0, bond_usdc6: int = 0
    ) -> Wallet:
        """Account n belongs to wallet(100 + n)."""
        owner = wallet(100 + account)
        raw = Command(kind=CommandKind.OPEN_ACCOUNT, account=account).pack()
        record = bytearray(raw)
        record[24:44] = owner.address_bytes
        self.port.submit(unpack_command(bytes(record)))
        for purse, amount in ((Purse.CASH, cash_usdc6), (Purse.BOND, bond_usdc6)):
            if amount:
                self.deposit(account, amount, purse)
        await self.port.settled()
        return owner

    def deposit(self, account: int, amount_usdc6: int, purse: Purse = Purse.CASH) -> None:
        self.deposits += 1
        self.port.submit(
            Command(
                kind=CommandKind.DEPOSIT,
                account=account,
                client_id=self.deposits,
                price_ticks=amount_usdc6,
                side=purse,
            )
        )

    async def list_market(self, symbol: str = SYMBOL, *, lot_multiple: int = 1) -> int:
        product = self.desk.catalog.parse(symbol)
        instrument = self.desk.next_instrument()
        bond_usdc6_per_lot = 100
        self.port.submit(
            Command(
                kind=CommandKind.LIST_MARKET,
                instrument=instrument,
                order_id=product,
                price_ticks=bond_usdc6_per_lot,
                qty_lots=lot_multiple,
            )
        )
        await self.port.settled()
        return instrument

    async def declare(self, account: int, instrument: int, qty_lots: int) -> None:
        self.port.submit(
            Command(
                kind=CommandKind.DECLARE_CAPACITY,
                account=account,
                instrument=instrument,
                qty_lots=qty_lots,
            )
        )
        await self.port.settled()

    def converse(
        self, trader: Wallet | None = None, codec: Codec | None = None, address: str = "127.0.0.1"
    ) -> "Conversation":
        """A session without a socket, logged in if a wallet is given."""
        conversation = Conversation(self.desk, codec or self.codec, address)
        if trader is not None:
            conversation.login(trader)
        return conversation


def unpack_command(record: bytes) -> Command:
    return Command._make(COMMAND_STRUCT.unpack(record))


class Conversation:
    """Drives one `Session` by frames, as a server would."""

    def __init__(self, desk: Desk, codec: Codec = JSON, address: str = "127.0.0.1") -> None:
        self.overflowed = False
        spelling = msgspec.json if codec is JSON else msgspec.msgpack
        self._opcode = codec.opcode
        self._encode = spelling.Encoder().encode
        self._decode = spelling.Decoder(m.ServerMessage).decode
        self.outbox = Outbox(desk.limits.outbound_bytes, wake=lambda: None, overflow=self._over)
        self.closed: list[tuple[m.CloseCode, str]] = []
        self.session = Session(
            desk,
            self.outbox,
            codec,
            address,
            hang_up=lambda code, why: self.closed.append((code, why)),
        )
        self.session.open()
        [hello] = self.heard()
        assert isinstance(hello, m.Hello)
        self.hello = hello
        self._last_id = 0

    def _over(self) -> None:
        self.overflowed = True

    def heard(self) -> list[m.ServerMessage]:
        frames = self.outbox.take()
        for frame in frames:
            self.outbox.sent(frame)
        heard = [found for chunk in frames for found in frames_in(chunk)]
        assert all(opcode == self._opcode for opcode, _ in heard)
        return [self._decode(payload) for _, payload in heard]

    def say(self, request: m.ClientMessage) -> list[m.ServerMessage]:
        self.session.receive(self._encode(request))
        return self.heard()

    def say_raw(self, frame: bytes | str) -> list[m.ServerMessage]:
        self.session.receive(frame)
        return self.heard()

    def login(self, trader: Wallet, key: Wallet | None = None) -> m.Ack:
        nonce = bytes.fromhex(self.hello.nonce[2:])
        signature = (key or trader).sign_login(DOMAIN, nonce, trader.address_bytes)
        request = m.Login(1, trader.address, self.hello.nonce, "0x" + signature.hex())
        request.key = key.address if key is not None else ""
        [ack] = self.say(request)
        assert isinstance(ack, m.Ack), ack
        return ack


@asynccontextmanager
async def running_exchange(
    directory: Path,
    limits: m.Limits = DEFAULT_LIMITS,
    now_ns: Callable[[], int] = time.monotonic_ns,
    disk: Disk | None = None,
    keys: Keys | None = None,
    keep: Keep | None = None,
    signatures: Signatures | None = None,
    sign_within_ms: int = 0,
) -> AsyncGenerator[Exchange]:
    clock = ScriptedClock(START_NS)
    journal = Journal(directory / "journal", disk or SystemDisk())
    pipeline = Pipeline(journal, clock, quick_ns=patience(disk))
    audit = Audit(directory / AUDIT_FILE)
    desk = open_desk(
        pipeline,
        load_catalog(),
        DOMAIN,
        administrator=ADMINISTRATOR.address_bytes,
        limits=limits,
        now_ns=now_ns,
        time_ns=clock.now_ns,
        keys=keys,
        audit=audit,
        history=History(directory / "history.sqlite3", keep),
        signatures=signatures,
        sign_within_ms=sign_within_ms,
    )
    await pipeline.start()
    desk.history.check(pipeline.ready().event_number)
    desk.begin()
    exchange = Exchange(pipeline, desk, clock)
    try:
        yield exchange
    finally:
        await exchange.stop()
        audit.close()


@asynccontextmanager
async def running_server(
    exchange: Exchange, access: Access = OPEN_ACCESS
) -> AsyncGenerator[tuple[GatewayServer, str]]:
    """The server and the URL of its websocket."""
    server = GatewayServer(exchange.desk, Health(exchange.port), access=access)
    await server.start()
    host, port = server.address
    try:
        yield server, f"ws://{host}:{port}/ws"
    finally:
        await server.stop()
