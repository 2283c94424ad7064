"""One connection to a compex exchange: requests with their one reply each, and typed streams.

Start with `connect`. Invariant: every request ends in its ack, in `Rejected`, or in
`Disconnected`; nothing is retried behind the caller's back. Not for several event loops.
"""

import asyncio
from collections.abc import Callable, Iterable
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from compex_client import messages as m
from compex_client.errors import (
    BookOutOfStep,
    CompexClientError,
    Disconnected,
    ProtocolViolation,
    Rejected,
)
from compex_client.streams import BookStream, Stream
from compex_client.wallet import ADDRESS_BYTES, NONCE_BYTES, Domain, Wallet, parse_hex

REQUESTS_IN_FLIGHT_MAX: Final = 1024  # further requests wait for replies
FRAME_BYTES_MAX: Final = 64 << 20  # the largest snapshot accepted
PING_INTERVAL_S: Final = 15.0
OPEN_TIMEOUT_S: Final = 10.0

Number: TypeAlias = str | Decimal | int  # a float is refused: it could not be exact
PrivateMessage: TypeAlias = m.AccountSnapshot | m.Numbered | m.Balance | m.CaughtUp
_Private: Final = (*m.NUMBERED, m.AccountSnapshot, m.Balance, m.CaughtUp)
_KNOWN: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(m.ServerMessage))


class _Unknown(msgspec.Struct):
    """A message of a later protocol: of no use here, but that it may be numbered."""

    t: str
    aseq: int = 0


async def connect(url: str, wallet: Wallet | None = None, *, session: int = 0) -> "Client":
    """Open a connection and, with a wallet, log in; `async with await connect(...) as client`.

    `url` is the exchange's websocket, such as ws://127.0.0.1:8080/ws. Without a wallet only
    public data may be read. `session`, 0 to 255, is a number of your own for the orders placed
    here, so that `cancel_all` can mean just those. Raises Disconnected if there is no exchange,
    Rejected if the login is refused.
    """
    try:
        socket = await connect_socket(
            url,
            max_size=FRAME_BYTES_MAX,
            compression=None,
            ping_interval=PING_INTERVAL_S,
            open_timeout=OPEN_TIMEOUT_S,
        )
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as error:
        raise Disconnected(0, f"{url}: {error}") from error
    client = Client(socket)
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await client.start()
            if wallet is not None:
                await client.login(wallet, session)
    except TimeoutError as error:
        await client.close()
        raise Disconnected(0, f"{url}: no greeting") from error
    except BaseException:
        await client.close()
        raise
    return client


def _decimal(number: Number) -> str:
    if isinstance(number, float):
        raise TypeError("a float is not exact; pass a string, a Decimal or an int")
    return format(number, "f") if isinstance(number, Decimal) else str(number)


class Client:
    """A connected client. Prices, quantities and amounts are decimal strings, Decimals or ints:
    dollars per GPU-hour, GPU-hours, USDC. Every request raises Rejected or Disconnected.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._decoder = msgspec.json.Decoder(m.ServerMessage)
        self._encoder = msgspec.json.Encoder()
        self._greeted: asyncio.Future[m.Hello] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[m.Ack | m.Pong]] = {}
        self._in_flight = asyncio.Semaphore(REQUESTS_IN_FLIGHT_MAX)
        self._last_id = 0
        self._reader: asyncio.Task[None] | None = None
        self._gone: Disconnected | ProtocolViolation | None = None
        self._streams: list[tuple[Callable[[m.ServerMessage], bool], Stream[Any]]] = []
        self._books: dict[str, list[BookStream]] = {}
        self._mending: set[asyncio.Task[None]] = set()
        self._tickers: dict[str, str] = {}
        self._resumed: dict[int, int] = {}  # from_aseq, by the request in flight
        self._nonce = ""
        self.wallet: Wallet | None = None
        self.account = 0  # 0 until the wallet has made its first deposit
        self.aseq = 0  # of the last private message received
        self.last_heartbeat: m.Heartbeat | None = None

    # --- connection ----------------------------------------------------------------------------
    async def start(self) -> None:
        """Called once, by `connect`."""
        self._reader = asyncio.create_task(self._read())
        self._nonce = (await self._greeted).nonce

    @property
    def hello(self) -> m.Hello:
        """What the server said first: limits, units, the EIP-712 domain."""
        return self._greeted.result()

    async def login(self, wallet: Wallet, session: int = 0) -> m.Ack:
        """Prove the ownership of the wallet; once per connection, by `connect` as a rule."""
        domain = Domain(self.hello.chain_id, parse_hex(self.hello.vault, ADDRESS_BYTES))
        signature = wallet.sign_login(domain, parse_hex(self._nonce, NONCE_BYTES))
        nonce = self._nonce
        proof = "0x" + signature.hex()
        ack = await self._ask(lambda i: m.Login(i, wallet.address, nonce, proof, session))
        self.wallet, self.account = wallet, ack.account
        return ack

    async def close(self) -> None:
        await self._socket.close()
        if self._reader is not None:
            await self._reader

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # --- orders --------------------------------------------------------------------------------
    async def place(
        self,
        market: str,
        side: m.Side,
        price: Number = "",
        qty: Number = "",
        *,
        client_id: int = 0,
        tif: m.TimeInForce | None = None,
        post_only: bool = False,
        self_trade: m.SelfTrade = "cancel_taker",
        type: m.OrderType = "limit",  # noqa: A002 - the name it has on the wire
        protection: Number = "",
        expires_s: int = 0,
        min_qty: Number = "",
        display_qty: Number = "",
        stop: Number = "",
        all_or_none: bool = False,
        resale: bool = False,
    ) -> m.Ack:
        """Place an order; the ack has its `order_id`. With a `client_id` the same call may be
        repeated for ever and places one order.

        A limit order needs a `price`; a market order none, but a `protection`: how far beyond the
        best price it may trade; a "stop" waits until a trade reaches its `stop` and is a market
        order then, a "stop_limit" a limit order. `expires_s` is in Unix seconds, for the `tif`
        "gtt". Without a `tif` a market order or stop is "ioc", one that expires "gtt", any other
        "gtc"; `messages.New` tells what each means.
        """
        if tif is None:
            tif = "ioc" if type in {"market", "stop"} else "gtt" if expires_s else "gtc"
        order = m.New(
            id=1,  # until it is sent
            market=market,
            side=side,
            price=_decimal(price),
            qty=_decimal(qty),
            client_id=client_id,
            tif=tif,
            post_only=post_only,
            self_trade=self_trade,
            type=type,
            protection=_decimal(protection),
            expires_s=expires_s,
            min_qty=_decimal(min_qty),
            display_qty=_decimal(display_qty),
            stop=_decimal(stop),
            all_or_none=all_or_none,
            resale=resale,
        )
        return await self._ask(lambda i: msgspec.structs.replace(order, id=i))

    async def quote(
        self,
        market: str,
        bids: Iterable[tuple[Number, Number]] = (),
        asks: Iterable[tuple[Number, Number]] = (),
        *,
        client_id: int = 0,
        post_only: bool = False,
        self_trade: m.SelfTrade = "cancel_taker",
    ) -> m.Ack:
        """Replace the account's quotes in a market by these (price, qty) levels; none takes them
        off. `messages.Quote` tells more."""
        b, a = ([(_decimal(p), _decimal(q)) for p, q in levels] for levels in (bids, asks))
        return await self._ask(lambda i: m.Quote(i, market, b, a, client_id, post_only, self_trade))

    async def block(
        self, market: str, hours: int, qty: Number, price: Number, *, client_id: int = 0
    ) -> m.Ack:
        """Buy `qty` GPU-hours in each of `hours` hours, the first of which `market` is, from one
        seller throughout, at `price` on average or better. `messages.Block` tells more."""
        q, p = _decimal(qty), _decimal(price)
        return await self._ask(lambda i: m.Block(i, market, hours, q, p, client_id))

    async def exclusive(
        self, legs: Iterable[m.Leg], *, client_id: int = 0, or_better: bool = False
    ) -> m.Ack:
        """Buy just the best of several alternatives, whole and at once."""
        chosen = list(legs)
        return await self._ask(lambda i: m.Exclusive(i, chosen, client_id, or_better))

    async def basket(self, legs: Iterable[m.Leg], *, client_id: int = 0) -> m.Ack:
        """Trade every leg whole and at once, or none."""
        chosen = list(legs)
        return await self._ask(lambda i: m.Basket(i, chosen, client_id))

    async def amend(
        self,
        order_id: int = 0,
        *,
        client_id: int = 0,
        price: Number = "",
        qty: Number = "",
        post_only: bool = False,
        self_trade: m.SelfTrade = "cancel_taker",
    ) -> m.Ack:
        """Change an open order's price, what is left of it, or both, by exactly one of its ids.

        The ack has the `price` and `qty` it has now, before it trades if it crosses, and
        `lost_place`: only less at the same price keeps its place. Rejected: it stands as it was.
        """
        p, q = _decimal(price), _decimal(qty)
        return await self._ask(
            lambda i: m.Amend(i, order_id, client_id, p, q, post_only, self_trade)
        )

    async def cancel(self, order_id: int = 0, *, client_id: int = 0) -> m.Ack:
        """Cancel an order by exactly one of its ids; the ack has the `qty` removed."""
        return await self._ask(lambda i: m.Cancel(i, order_id, client_id))

    async def cancel_all(
        self, market: str = "", side: Literal["", "buy", "sell"] = "", session: int = 0
    ) -> m.Ack:
        """Cancel all open orders of the account, or those in one market, of one side, or of one
        session; the ack has `count`."""
        return await self._ask(lambda i: m.CancelAll(i, market, side, session))

    async def cancel_on_disconnect(
        self,
        grace_ms: int = 0,
        *,
        scope: m.Scope = "session",
        on_close: bool = False,
        off: bool = False,
    ) -> m.Ack:
        """Have the open orders of this session, or of the account, cancelled when the connection
        is lost for so long; the ack has what is `armed`. A `close` by the program cancels nothing
        and disarms, unless `on_close` is set. `messages.CancelOnDisconnect` tells more."""
        return await self._ask(lambda i: m.CancelOnDisconnect(i, grace_ms, scope, on_close, off))

    async def dead_man(self, timeout_ms: int, *, scope: m.Scope = "session") -> m.Ack:
        """Have the open orders cancelled once, unless this is called again in time; 0 disarms."""
        return await self._ask(lambda i: m.DeadMan(i, timeout_ms, scope))

    async def declare_capacity(self, market: str, qty: Number) -> m.Ack:
        """Set the total GPU-hours the account can deliver under a market."""
        q = _decimal(qty)
        return await self._ask(lambda i: m.Capacity(i, market, q))

    async def withdraw(self, amount: Number, *, client_id: int = 0) -> m.Ack:
        """Send free USDC to the account's own wallet; the ack has the `withdrawal_id`. With a
        `client_id` the same call may be repeated for ever and withdraws once."""
        a = _decimal(amount)
        return await self._ask(lambda i: m.Withdraw(i, a, client_id))

    # --- state ---------------------------------------------------------------------------------
    async def open_orders(self, market: str = "") -> list[m.OrderInfo]:
        ack = await self._ask(lambda i: m.Query(i, "orders", market))
        return ack.orders or []

    async def order(self, order_id: int = 0, *, client_id: int = 0) -> m.OrderInfo:
        """One order, open or lately closed, by exactly one of its ids."""
        ack = await self._ask(lambda i: m.Query(i, "order", "", order_id, client_id))
        if ack.order is None:
            raise ProtocolViolation("an order was asked for, and none is in the ack")
        return ack.order

    async def kept_fills(self, from_aseq: int = 1, limit: int = 100) -> list[m.Fill]:
        """The account's fills with numbers from that one on, oldest first, as far as they are
        kept."""
        ack = await self._ask(lambda i: m.Query(i, "fills", from_aseq=from_aseq, limit=limit))
        return ack.fills or []

    async def kept_leases(self, from_aseq: int = 1, limit: int = 100) -> list[m.Lease]:
        """The same of its leases: every state that each has been in."""
        ack = await self._ask(lambda i: m.Query(i, "leases", from_aseq=from_aseq, limit=limit))
        return ack.leases or []

    async def balances(self) -> m.Balances:
        ack = await self._ask(lambda i: m.Query(i, "balances"))
        if ack.balances is None:
            raise ProtocolViolation("balances were asked for, and none are in the ack")
        return ack.balances

    async def markets(self) -> list[m.MarketInfo]:
        ack = await self._ask(lambda i: m.Query(i, "markets"))
        return ack.markets or []

    async def ping(self) -> m.Pong:
        """The server's time. Connections are kept open without calling this."""
        reply = await self._request(m.Ping)
        if not isinstance(reply, m.Pong):
            raise ProtocolViolation("a ping was answered with something else than a pong")
        return reply

    # --- administration ------------------------------------------------------------------------
    async def list_market(
        self,
        market: str,
        *,
        bond: Number = "",
        lot: Number = "",
        closes_s: int = 0,
        opening_call: bool = False,
        opens_s: int = 0,
        closing_call_s: int = 0,
    ) -> m.Ack:
        """`bond` in USDC per 0.01 GPU-hour; quantities will be multiples of `lot` GPU-hours;
        by default as the catalog has them. `closes_s`, in Unix seconds, is its gate closure.
        `messages.Market` tells of opening and closing calls."""
        request = m.Market(
            id=1,  # until it is sent
            action="list",
            market=market,
            bond=_decimal(bond),
            lot=_decimal(lot),
            closes_s=closes_s,
            opening_call=opening_call,
            opens_s=opens_s,
            closing_call_s=closing_call_s,
        )
        return await self._ask(lambda i: msgspec.structs.replace(request, id=i))

    async def call_market(self, market: str, *, until_s: int = 0) -> m.Ack:
        """Gather orders without matching, until then (Unix seconds) or `uncross_market`."""
        return await self._ask(lambda i: m.Market(i, "call", market, until_s=until_s))

    async def uncross_market(self, market: str) -> m.Ack:
        """End a call: trade what can be traded at one price, the ack's `price`, so much of it as
        its `qty`. `partial`: there is more to do, and it is being done."""
        return await self._ask(lambda i: m.Market(i, "uncross", market))

    async def set_bands(
        self,
        market: str,
        *,
        static_ppm: int = 0,
        dynamic_ppm: int = 0,
        call_s: int = 0,
        reference: Number = "",
    ) -> m.Ack:
        """Hold prices within bands, in parts per million; 0 takes a band away."""
        request = m.Market(
            id=1,
            action="bands",
            market=market,
            static_ppm=static_ppm,
            dynamic_ppm=dynamic_ppm,
            call_s=call_s,
            reference=_decimal(reference),
        )
        return await self._ask(lambda i: msgspec.structs.replace(request, id=i))

    async def halt_market(self, market: str) -> m.Ack:
        return await self._ask(lambda i: m.Market(i, "halt", market))

    async def resume_market(self, market: str) -> m.Ack:
        return await self._ask(lambda i: m.Market(i, "resume", market))

    async def close_market(self, market: str) -> m.Ack:
        """For good; every order in it is cancelled. `count`, and `partial` as for cancel_all."""
        return await self._ask(lambda i: m.Market(i, "close", market))

    async def set_fee_tier(self, wallet: str, tier: int) -> m.Ack:
        """Which rates the wallet's orders are charged from now on; tiers count from 0."""
        return await self._ask(lambda i: m.FeeTier(i, wallet, tier))

    # --- streams -------------------------------------------------------------------------------
    async def book(self, market: str) -> BookStream:
        """The mirrored book of a market; its snapshot is applied when this returns.

        A gap or a wrong checksum is mended by a new snapshot, counted in `resyncs`.
        """
        market = await self._ticker(market)
        stream = BookStream(market)
        self._books.setdefault(market, []).append(stream)
        try:
            await self.subscribe("book", market)
            await anext(stream)
        except BaseException:
            self._books[market].remove(stream)
            raise
        stream.changed()
        return stream

    async def trades(self, market: str = "") -> Stream[m.Trade]:
        """Public trades of one market (its latest first) or of all from now on; each once."""
        market = await self._ticker(market)
        seen: dict[str, int] = {}

        def wanted(message: m.ServerMessage) -> bool:
            if not isinstance(message, m.Trade) or market not in {"", message.market}:
                return False
            newer = message.trade_id > seen.get(message.market, 0)
            seen[message.market] = max(message.trade_id, seen.get(message.market, 0))
            return newer

        return await self._open_stream(Stream[m.Trade](), wanted, "trades", market)

    async def statuses(self, market: str = "") -> Stream[m.MarketStatus]:
        """The status of one market or of all: now, and whenever it changes."""
        market = await self._ticker(market)
        return await self._open_stream(
            Stream[m.MarketStatus](),
            lambda x: isinstance(x, m.MarketStatus) and market in {"", x.market},
            "status",
            market,
        )

    async def auctions(self, market: str = "") -> Stream[m.Auction]:
        """What calls would come to, and came to: of one market or, without one, of all."""
        ticker = await self._ticker(market) if market else ""
        return await self._open_stream(
            Stream[m.Auction](),
            lambda x: isinstance(x, m.Auction) and ticker in {"", x.market},
            "auction",
            market,
        )

    async def index(self, market: str = "") -> Stream[m.Index]:
        """Published spot prices of one market or of all: the latest, and each new one."""
        market = await self._ticker(market)
        return await self._open_stream(
            Stream[m.Index](),
            lambda x: isinstance(x, m.Index) and market in {"", x.market},
            "index",
            market,
        )

    async def private(self, *, from_aseq: int = 0) -> Stream[PrivateMessage]:
        """Everything about the account, in order: a snapshot first, then what changes.

        With `from_aseq` no snapshot, but every message from that number on as it was, one
        `CaughtUp`, and then what changes. Rejected (1020) if so old ones are not kept any more.
        """
        return await self._open_stream(
            Stream[PrivateMessage](), lambda x: isinstance(x, _Private), "account", "", from_aseq
        )

    async def fills(self) -> Stream[m.Fill]:
        """The account's fills from now on."""
        return await self._open_stream(Stream[m.Fill](), lambda x: isinstance(x, m.Fill), "account")

    async def order_updates(self) -> Stream[m.Order]:
        """The account's orders being accepted, amended, cancelled or expired, from now on."""
        return await self._open_stream(
            Stream[m.Order](), lambda x: isinstance(x, m.Order), "account"
        )

    async def sequenced(self) -> Stream[m.Sequenced]:
        """Each command of this connection from now on, when it has its place in the order: before
        it is durable, before its ack, and without any promise."""
        return await self._open_stream(
            Stream[m.Sequenced](), lambda x: isinstance(x, m.Sequenced), "sequenced"
        )

    async def transfers(self) -> Stream[m.Transfer]:
        """Deposits credited, fills final in escrow, withdrawals: the account's, from now on."""
        return await self._open_stream(
            Stream[m.Transfer](), lambda x: isinstance(x, m.Transfer), "account"
        )

    async def balance_updates(self) -> Stream[m.Balance]:
        """The account's money, after each change."""
        return await self._open_stream(
            Stream[m.Balance](), lambda x: isinstance(x, m.Balance), "account"
        )

    async def subscribe(self, channel: str, market: str = "", from_aseq: int = 0) -> m.Ack:
        """The raw request; the methods above both ask and deliver."""

        def make(i: int) -> m.Subscribe:
            if from_aseq:
                self._resumed[i] = from_aseq
            return m.Subscribe(i, channel, market, from_aseq)

        return await self._ask(make)

    async def unsubscribe(self, channel: str, market: str = "") -> m.Ack:
        """Tell the server to stop. Streams of the channel stay open, silent."""
        return await self._ask(lambda i: m.Unsubscribe(i, channel, market))

    async def _open_stream(
        self,
        stream: Stream[Any],
        wanted: Callable[[m.ServerMessage], bool],
        channel: str,
        market: str = "",
        from_aseq: int = 0,
    ) -> Stream[Any]:
        entry = (wanted, stream)
        # Before the request: the first messages come right behind the ack.
        self._streams.append(entry)
        try:
            await self.subscribe(channel, market, from_aseq)
        except BaseException:
            self._streams.remove(entry)
            raise
        return stream

    async def _ticker(self, market: str) -> str:
        """What the server's messages will call a market asked for by its long symbol."""
        if "|" not in market:
            return market
        if market not in self._tickers:
            self._tickers = {info.symbol: info.market for info in await self.markets()}
        return self._tickers.get(market, market)

    # --- requests and the reader ---------------------------------------------------------------
    async def _ask(self, make: Callable[[int], m.ClientMessage]) -> m.Ack:
        reply = await self._request(make)
        if not isinstance(reply, m.Ack):
            raise ProtocolViolation("a request was answered with something else than an ack")
        return reply

    async def _request(self, make: Callable[[int], m.ClientMessage]) -> m.Ack | m.Pong:
        await self._in_flight.acquire()
        future: asyncio.Future[m.Ack | m.Pong] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._in_flight.release())
        if self._gone is not None:
            future.cancel()
            raise self._gone
        self._last_id += 1
        request_id = self._last_id
        self._waiting[request_id] = future
        try:
            await self._socket.send(self._encoder.encode(make(request_id)), text=True)
        except ConnectionClosed as closed:
            self._waiting.pop(request_id, None)
            future.cancel()
            raise self._gone or _disconnected(closed) from closed
        return await future

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._socket.recv(decode=False)
                self._take(frame)
        except ConnectionClosed as closed:
            self._end(_disconnected(closed))
        except (msgspec.DecodeError, ValueError, ProtocolViolation) as error:
            self._end(ProtocolViolation(f"a frame from the server: {error}"))
            await self._socket.close()

    def _take(self, frame: bytes) -> None:
        try:
            message = self._decoder.decode(frame)
        except msgspec.ValidationError:
            unknown = msgspec.json.decode(frame, type=_Unknown)
            if unknown.t in _KNOWN:
                raise
            if unknown.aseq == self.aseq + 1:
                self.aseq = unknown.aseq  # it is numbered
            return
        self._dispatch(message)

    def _end(self, error: Disconnected | ProtocolViolation) -> None:
        self._gone = error
        waiting = [self._greeted, *self._waiting.values()]
        self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # a caller that gave up waiting leaves no "never retrieved"
        for _, stream in self._streams:
            stream.fail(error)
        for streams in self._books.values():
            for book in streams:
                book.fail(error)
        for task in self._mending:
            task.cancel()

    def _dispatch(self, message: m.ServerMessage) -> None:
        match message:
            case m.Ack() | m.Pong():
                if from_aseq := self._resumed.pop(message.id, 0):
                    self.aseq = from_aseq - 1
                future = self._waiting.pop(message.id, None)
                if future is not None and not future.done():
                    future.set_result(message)
            case m.Reject():
                self._refused(message)
            case m.BookSnapshot() | m.BookDelta():
                self._apply(message)
            case m.Hello():
                if self._greeted.done():
                    raise ProtocolViolation("a second hello")
                self._greeted.set_result(message)
            case m.Heartbeat():
                self.last_heartbeat = message
            case m.AccountSnapshot():
                self.aseq, self.account = message.aseq, message.account
            case (
                m.Order()
                | m.Fill()
                | m.Transfer()
                | m.OrderRejected()
                | m.CancelledAll()
                | m.Lease()
            ):
                self.aseq += 1
                self._check_private(message.aseq)
            case m.Balance() | m.CaughtUp():
                self._check_private(message.aseq)
            case _:
                pass
        for wanted, stream in self._streams:
            if wanted(message):
                stream.push(message)
        if any(stream.over for _, stream in self._streams):
            self._streams = [entry for entry in self._streams if not entry[1].over]

    def _check_private(self, aseq: int) -> None:
        if aseq != self.aseq:
            raise ProtocolViolation(f"private message {aseq} came where {self.aseq} was due")

    def _refused(self, reject: m.Reject) -> None:
        self._nonce = reject.nonce or self._nonce
        self._resumed.pop(reject.id, None)
        future = self._waiting.pop(reject.id, None)
        if future is not None and not future.done():
            future.set_exception(
                Rejected(
                    reject.code,
                    reject.reason,
                    reject.message,
                    reject.field,
                    reject.retry_ms,
                    reject.recovered,
                    reject.digest,
                )
            )

    def _apply(self, message: m.BookSnapshot | m.BookDelta) -> None:
        streams = [x for x in self._books.get(message.market, ()) if not x.over]
        self._books[message.market] = streams
        for stream in streams:
            try:
                if isinstance(message, m.BookSnapshot):
                    stream.book.apply_snapshot(message)
                    stream.synced = True
                elif not stream.synced:
                    continue  # its snapshot is still to come
                else:
                    stream.book.apply_delta(message)
            except BookOutOfStep:
                stream.resyncs += 1
                stream.synced = False
                self._mend(message.market)
            else:
                stream.changed()

    def _mend(self, market: str) -> None:
        async def resubscribe() -> None:
            try:
                await self.subscribe("book", market)
            except CompexClientError as error:
                for stream in self._books.get(market, ()):
                    stream.fail(error)

        task = asyncio.create_task(resubscribe())
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)


def _disconnected(closed: ConnectionClosed) -> Disconnected:
    frame = closed.rcvd or closed.sent
    return Disconnected(frame.code, frame.reason) if frame else Disconnected(0, "no close frame")
