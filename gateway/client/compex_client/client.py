"""One connection to a compex exchange: requests with their one reply each, and typed streams.

Start with `connect`. Invariant: every request ends in its ack, in `Rejected`, or in
`Disconnected` (or `ProtocolViolation`, which leaves it as unknown); what was or may have been done
is not sent again behind the caller's back. Not for several event loops.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from compex_client import messages as m
from compex_client.book import Book
from compex_client.errors import (
    BookOutOfStep,
    CompexClientError,
    Disconnected,
    ProtocolViolation,
    Rejected,
    WalletError,
)
from compex_client.order_book import OrderBook
from compex_client.signing import Expected, Signer, Terms
from compex_client.streams import BookStream, Stream
from compex_client.units import parse_price, parse_qty
from compex_client.wallet import (
    ADDRESS_BYTES,
    EVERY_KEY,
    NONCE_BYTES,
    Domain,
    SessionKey,
    Wallet,
    address_text,
    parse_hex,
)

REQUESTS_IN_FLIGHT_MAX: Final = 1024  # further requests wait for replies
FRAME_BYTES_MAX: Final = 64 << 20  # the largest snapshot accepted
PASSED_OVER_MAX: Final = 1 << 16  # numbers remembered of messages of a later protocol
PING_INTERVAL_S: Final = 15.0
OPEN_TIMEOUT_S: Final = 10.0
CLOCK_SAMPLES: Final = 8
SIGNED: Final = Terms()
# The exchange's number for: sign the orders before first; and what an older one says.
SIGNATURES_WANTED: Final = frozenset({1021, 1006})
LAST_SIGNATURE_S: Final = 5.0  # that a close waits for what is not signed yet
KEY_VALID_S: Final = 30 * 86_400  # of a session key for which no time is given

log = logging.getLogger("compex_client.client")
Number: TypeAlias = str | Decimal | int  # a float is refused: it could not be exact
PrivateMessage: TypeAlias = m.AccountSnapshot | m.Numbered | m.Balance | m.CaughtUp
Codec: TypeAlias = Literal["json", "msgpack"]
# A batch is made of these, whose ids are given when it is sent, and has a result for each.
BatchItem: TypeAlias = m.New | m.Cancel | m.Amend | m.Replace | m.Quote
BatchResult: TypeAlias = m.Ack | m.Reject | m.ReplaceAck
BookMessage: TypeAlias = m.BookSnapshot | m.BookDelta | m.OrdersSnapshot | m.OrdersDelta
_Reply: TypeAlias = m.Ack | m.Pong | m.ReplaceAck | m.BatchAck
_AnyReply = TypeVar("_AnyReply", bound=_Reply)
_SUBPROTOCOLS: Final[dict[Codec, Subprotocol]] = {"msgpack": Subprotocol("compex.v1.msgpack")}
# Whatever a frame may break: nobody is to wait for what is not read any more.
_UNREADABLE: Final = (
    ProtocolViolation,
    msgspec.DecodeError,
    ValueError,
    AssertionError,
    LookupError,
)
_Private: Final = (*m.NUMBERED, m.AccountSnapshot, m.Balance, m.CaughtUp)
_KNOWN: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(m.ServerMessage))


class _Unknown(msgspec.Struct):
    """A message of a later protocol: of no use here, but that it may be numbered."""

    t: str
    aseq: int = 0


class ClockOffset(NamedTuple):
    """`offset_us` is what must be added to the client's clock to have the server's, to within half
    of `round_trip_us`."""

    offset_us: int
    round_trip_us: int


class _Choice(NamedTuple):
    """Which book, and how much of it: its messages say so."""

    channel: str
    market: str
    depth: m.Depth = 0
    every_ms: m.EveryMs = 0


async def connect(
    url: str,
    wallet: Wallet | str | None = None,
    *,
    key: Wallet | None = None,
    session: int = 0,
    codec: Codec = "json",
    signing: Terms | None = SIGNED,
) -> "Client":
    """Open a connection and, with a wallet, log in; `async with await connect(...) as client`.

    `url` is the exchange's websocket, such as ws://127.0.0.1:8765/ws. Without a wallet only
    public data may be read. With a `key` that the wallet has authorised, the wallet's address is
    enough, and its secret stays elsewhere. `session`, 0 to 255, is a number of your own for the
    orders placed here, so that `cancel_all` can mean just those. `codec` "msgpack" says the same in
    fewer bytes. Where the exchange settles signed orders alone, each order is signed by itself
    half a second behind its ack, by the key or else the wallet; `signing` says on which terms, and
    None that the program does it (`sign_orders`). Raises Disconnected if there is no exchange, or
    none that speaks the codec; Rejected if the login is refused.
    """
    wanted = _SUBPROTOCOLS.get(codec)
    try:
        socket = await connect_socket(
            url,
            max_size=FRAME_BYTES_MAX,
            compression=None,
            ping_interval=PING_INTERVAL_S,
            open_timeout=OPEN_TIMEOUT_S,
            subprotocols=[wanted] if wanted else None,
        )
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as error:
        raise Disconnected(0, f"{url}: {error}") from error
    if wanted and socket.subprotocol != wanted:
        await socket.close()
        raise Disconnected(0, f"{url}: it does not speak {wanted}")
    client = Client(socket, codec)
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await client.start()
            if wallet is not None:
                await client.login(wallet, session, key=key, signing=signing)
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

    def __init__(self, socket: ClientConnection, codec: Codec = "json") -> None:
        self._socket = socket
        self._is_text = codec == "json"
        spelling = msgspec.json if self._is_text else msgspec.msgpack
        self._decode: Callable[[bytes], m.ServerMessage] = spelling.Decoder(m.ServerMessage).decode
        self._decode_unknown: Callable[[bytes], _Unknown] = spelling.Decoder(_Unknown).decode
        self._encode: Callable[[m.ClientMessage], bytes] = spelling.Encoder().encode
        self._greeted: asyncio.Future[m.Hello] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[_Reply]] = {}
        self._in_flight = asyncio.Semaphore(REQUESTS_IN_FLIGHT_MAX)
        self._last_id = 0
        self._reader: asyncio.Task[None] | None = None
        self._gone: Disconnected | ProtocolViolation | None = None
        self._streams: list[tuple[Callable[[m.ServerMessage], bool], Stream[Any]]] = []
        self._books: dict[_Choice, list[BookStream[Any]]] = {}
        self._mending: set[asyncio.Task[None]] = set()
        self._tickers: dict[str, str] = {}
        self._resumed: dict[int, int] = {}  # from_aseq, by the request in flight
        self._nonce = ""
        self._key_nonce = 0  # of the last authorisation or revocation signed here
        self._signing: Signer | None = None
        self.wallet: Wallet | None = None  # None, too, where only its address is known
        self.account = 0  # 0 until the wallet has made its first deposit
        self.aseq = 0  # of the last private message received
        self.passed_over: set[int] = set()  # numbers of private messages that no stream knows
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

    @property
    def domain(self) -> Domain:
        """What signatures are for: this exchange's vault."""
        return Domain(self.hello.chain_id, parse_hex(self.hello.vault, ADDRESS_BYTES))

    async def login(
        self,
        wallet: Wallet | str,
        session: int = 0,
        *,
        key: Wallet | None = None,
        signing: Terms | None = SIGNED,
    ) -> m.Ack:
        """Prove the ownership of the wallet, or of a key that may act for it; once per connection,
        by `connect` as a rule."""
        signer = key or wallet
        if not isinstance(signer, Wallet):
            raise WalletError("an address cannot sign; give the wallet's secret, or a key")
        whose = wallet.address if isinstance(wallet, Wallet) else wallet
        nonce = self._nonce
        signature = signer.sign_login(
            self.domain, parse_hex(nonce, NONCE_BYTES), parse_hex(whose, ADDRESS_BYTES)
        )
        proof, name = "0x" + signature.hex(), key.address if key is not None else ""
        ack = await self._ask(lambda i: m.Login(i, whose, nonce, proof, session, name))
        self.wallet = wallet if isinstance(wallet, Wallet) else None
        self.account = ack.account
        if signing is not None and self.hello.signing is not None:
            self._signing = Signer(self, signer, signing)
        return ack

    async def close(self) -> None:
        try:
            if self._signing is not None:
                # What stays unsigned is listed when the program comes back.
                with suppress(CompexClientError, TimeoutError):
                    async with asyncio.timeout(LAST_SIGNATURE_S):
                        await self._signing.flush()
        finally:
            if self._signing is not None:
                self._signing.close()
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
        return await self._trade(
            lambda i: msgspec.structs.replace(order, id=i), lambda ack: self._placed(order, ack)
        )

    async def replace(
        self, order: m.New, *, old_order_id: int = 0, old_client_id: int = 0
    ) -> m.ReplaceAck:
        """Cancel an order, by exactly one of its ids, and if it was still open place this one in
        its stead; the `id` it was made with does not matter. Rejected: nothing has changed.
        `messages.Replace` tells more, and when `amend` is the better one."""
        terms: dict[str, Any] = msgspec.structs.asdict(order)
        terms |= {"old_order_id": old_order_id, "old_client_id": old_client_id}

        def request(number: int) -> m.Replace:
            terms["id"] = number
            return m.Replace(**terms)

        def replaced(reply: m.ReplaceAck) -> None:
            self._placed(order, reply.order)

        reply = await self._signed_first(lambda: self._request(request, replaced))
        if not isinstance(reply, m.ReplaceAck):
            raise ProtocolViolation("a replace was answered with something else")
        return reply

    async def batch(self, items: Iterable[BatchItem]) -> list[BatchResult]:
        """Send up to 64 requests in one frame: they are sequenced one behind the other, and each
        has its own result, in the same order. The ids they were made with do not matter. A refused
        item is a `Reject` in the list; `Rejected` is raised when the whole batch was refused."""
        chosen = list(items)
        first = self._last_id + 1
        self._last_id += len(chosen)
        numbered = [msgspec.structs.replace(x, id=i) for i, x in enumerate(chosen, first)]
        reply = await self._request(
            lambda i: m.Batch(i, numbered), lambda ack: self._batched(numbered, ack)
        )
        if not isinstance(reply, m.BatchAck) or len(reply.results) != len(numbered):
            raise ProtocolViolation("a batch was answered with something else")
        return reply.results

    def _batched(self, items: Sequence[BatchItem], ack: m.BatchAck) -> None:
        for item, result in zip(items, ack.results, strict=False):
            order = result.order if isinstance(result, m.ReplaceAck) else result
            match item:
                case m.New():  # or a replace
                    self._placed(item, order)
                case m.Amend() if isinstance(order, m.Ack):
                    self._amended(order)
                case m.Quote() if isinstance(order, m.Ack):
                    self._quoted(order.market, item.bids, item.asks)
                case _:
                    pass

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
        return await self._trade(
            lambda i: m.Quote(i, market, b, a, client_id, post_only, self_trade),
            lambda ack: self._quoted(ack.market, b, a),
        )

    async def block(
        self, market: str, hours: int, qty: Number, price: Number, *, client_id: int = 0
    ) -> m.Ack:
        """Buy `qty` GPU-hours in each of `hours` hours, the first of which `market` is, from one
        seller throughout, at `price` on average or better. `messages.Block` tells more."""
        q, p = _decimal(qty), _decimal(price)

        def placed(_: m.Ack) -> None:
            budget_ticks = parse_price(p) * hours
            self._expect([Expected(True, 0, parse_qty(q), left=hours, budget_ticks=budget_ticks)])

        return await self._trade(lambda i: m.Block(i, market, hours, q, p, client_id), placed)

    async def exclusive(
        self, legs: Iterable[m.Leg], *, client_id: int = 0, or_better: bool = False
    ) -> m.Ack:
        """Buy just the best of several alternatives, whole and at once."""
        chosen = list(legs)
        return await self._trade(
            lambda i: m.Exclusive(i, chosen, client_id, or_better),
            lambda _: self._expect(_expected_leg(leg, frozenset()) for leg in chosen),
        )

    async def basket(self, legs: Iterable[m.Leg], *, client_id: int = 0) -> m.Ack:
        """Trade every leg whole and at once, or none."""
        chosen = list(legs)
        signs = self._signing is not None
        named = [await self._ticker(leg.market) if signs else leg.market for leg in chosen]
        return await self._trade(
            lambda i: m.Basket(i, chosen, client_id),
            lambda _: self._expect(
                _expected_leg(leg, frozenset({ticker}))
                for leg, ticker in zip(chosen, named, strict=True)
            ),
        )

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
        return await self._trade(
            lambda i: m.Amend(i, order_id, client_id, p, q, post_only, self_trade), self._amended
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
        scope: m.CancelScope = "session",
        on_close: bool = False,
        off: bool = False,
    ) -> m.Ack:
        """Have the open orders of this session, or of the account, cancelled when the connection
        is lost for so long; the ack has what is `armed`. A `close` by the program cancels nothing
        and disarms, unless `on_close` is set. `messages.CancelOnDisconnect` tells more."""
        return await self._ask(lambda i: m.CancelOnDisconnect(i, grace_ms, scope, on_close, off))

    async def dead_man(self, timeout_ms: int, *, scope: m.CancelScope = "session") -> m.Ack:
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

    # --- signatures ----------------------------------------------------------------------------
    async def signed(self) -> None:
        """Return when all that was placed here, and acked, is signed and that is acked, too. No
        program needs to wait for it; orders of several legs are signed when they are listed."""
        if self._signing is not None:
            await self._signing.flush()

    async def sign_all(self) -> int:
        """Sign every order that the exchange lists as unsigned, also what this program does not
        know of: after it was cut off, or started anew. How many that were."""
        if self._signing is None:
            raise WalletError("nothing is signed here; log in with `signing`, where orders are")
        return await self._signing.sign_all()

    async def unsigned(self) -> m.Ack:
        """The ack's `unsigned`: which of the account's orders its signatures do not cover. Also
        its `last_number`."""
        return await self._ask(lambda i: m.Query(i, "unsigned"))

    async def sign_orders(
        self, orders: Sequence[m.SignedOrder], signature: bytes, key: str = ""
    ) -> m.Ack:
        """What was signed by hand, or elsewhere, as `orders.orders_digest` has it.
        `messages.SignOrders` tells more."""
        proof = "0x" + signature.hex()
        return await self._ask(lambda i: m.SignOrders(i, list(orders), proof, key))

    def _placed(self, order: m.New, ack: m.Ack | m.Reject) -> None:
        if self._signing is not None and isinstance(ack, m.Ack):
            self._signing.placed(order, ack)

    def _amended(self, ack: m.Ack) -> None:
        if self._signing is not None:
            self._signing.amended(ack)

    def _quoted(self, market: str, bids: Sequence[m.Level], asks: Sequence[m.Level]) -> None:
        named = frozenset({market})
        self._expect(
            Expected(is_buy, parse_price(price), parse_qty(qty), named)
            for is_buy, levels in ((True, bids), (False, asks))
            for price, qty in levels
        )

    def _expect(self, orders: Iterable[Expected]) -> None:
        if self._signing is not None:
            self._signing.expect(orders)

    # --- keys ----------------------------------------------------------------------------------
    async def authorise(
        self,
        key: str,
        *,
        wallet: Wallet | None = None,
        scopes: int = m.Scope.READ | m.Scope.TRADE,
        markets: Iterable[str] = (),
        valid_s: int = KEY_VALID_S,
    ) -> m.Ack:
        """Let the key of this address act for the wallet that is logged in, or for `wallet`, so
        many seconds from now; it replaces what the key was let do before. `messages.Authorise`
        tells more."""
        signer = self._signer(wallet)
        now_us = await self._new_nonce()
        terms = SessionKey(
            wallet=signer.address_bytes,
            key=parse_hex(key, ADDRESS_BYTES),
            scopes=int(scopes),
            markets=tuple(markets),
            valid_from_s=0,
            valid_until_s=now_us // 1_000_000 + valid_s,
            nonce=now_us,
        )
        return await self.send_authorisation(terms, signer.sign_session_key(self.domain, terms))

    async def send_authorisation(self, terms: SessionKey, signature: bytes) -> m.Ack:
        """What a wallet signed elsewhere, by `Wallet.sign_session_key`; no login is needed."""
        request = m.Authorise(
            id=1,  # until it is sent
            wallet=address_text(terms.wallet),
            key=address_text(terms.key),
            scopes=terms.scopes,
            valid_until_s=terms.valid_until_s,
            nonce=terms.nonce,
            signature="0x" + signature.hex(),
            valid_from_s=terms.valid_from_s,
            markets=list(terms.markets),
        )
        return await self._ask(lambda i: msgspec.structs.replace(request, id=i))

    async def revoke(self, key: str = "", *, wallet: Wallet | None = None) -> m.Ack:
        """Revoke a key, or all of them: of the wallet that is logged in or, from any connection,
        of `wallet`. Their connections are closed; the ack has the `count` of keys revoked. What was
        signed before and not yet sent is revoked as well, if its nonce is of its time, as here."""
        nonce = await self._new_nonce()
        if wallet is None:
            return await self._ask(lambda i: m.Revoke(i, key, nonce=nonce))
        meant = parse_hex(key, ADDRESS_BYTES) if key else EVERY_KEY
        proof = "0x" + wallet.sign_revocation(self.domain, meant, nonce).hex()
        return await self._ask(lambda i: m.Revoke(i, key, wallet.address, nonce, proof))

    async def keys(self) -> list[m.KeyInfo]:
        """Which keys may act for this wallet, now or later."""
        ack = await self._ask(lambda i: m.Query(i, "keys"))
        return ack.keys or []

    async def accounts(self) -> list[m.KeyInfo]:
        """For which wallets the one who logged in here, wallet or key, may act."""
        ack = await self._ask(lambda i: m.Query(i, "accounts"))
        return ack.accounts or []

    async def _new_nonce(self) -> int:
        """The server's time in microseconds: greater than all before, from whichever machine."""
        self._key_nonce = max(self._key_nonce + 1, (await self.ping()).time_us)
        return self._key_nonce

    def _signer(self, wallet: Wallet | None) -> Wallet:
        signer = wallet or self.wallet
        if signer is None:
            raise WalletError("a wallet has to sign this; log in with its secret, or give it")
        return signer

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

    async def token(self, seconds: int = 3_600) -> m.Ack:
        """A bearer with which plain HTTP requests may read this account: the ack's `token`, good
        until `valid_until_s`."""
        return await self._ask(lambda i: m.Token(i, seconds))

    async def ping(self) -> m.Pong:
        """The server's time. Connections are kept open without calling this."""
        return await self._ping(0)

    async def _ping(self, sent_us: int) -> m.Pong:
        reply = await self._request(lambda i: m.Ping(i, sent_us))
        if not isinstance(reply, m.Pong):
            raise ProtocolViolation("a ping was answered with something else than a pong")
        return reply

    async def clock_offset(
        self, samples: int = CLOCK_SAMPLES, now_ns: Callable[[], int] = time.time_ns
    ) -> ClockOffset:
        """How far the server's clock is ahead of this one, by pings: of several the one that was
        quickest there and back, as NTP does it (RFC 5905, 10). Only intervals and `expires_s` need
        it; nothing in this protocol asks for the client's time."""
        found: list[ClockOffset] = []
        for _ in range(samples):
            sent_us = now_ns() // 1_000
            pong = await self._ping(sent_us)
            back_us = now_ns() // 1_000
            ahead_us = (pong.received_us - sent_us) + (pong.time_us - back_us)
            way_us = (back_us - sent_us) - (pong.time_us - pong.received_us)
            found.append(ClockOffset(ahead_us // 2, way_us))
        return min(found, key=lambda sample: sample.round_trip_us)

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
        by default as the catalog has them. `closes_s`, in Unix seconds, is its gate closure:
        by default when its window begins.
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
    async def book(
        self, market: str, *, depth: m.Depth = 0, every_ms: m.EveryMs = 0
    ) -> BookStream[Book]:
        """The mirrored book of a market; its snapshot is applied when this returns.

        All of it after each change, or its best `depth` levels of each side, or what has changed
        `every_ms`. A gap or a wrong checksum is mended by a new snapshot, counted in `resyncs`.
        """
        market = await self._ticker(market)
        return await self._open_book(_Choice("book", market, depth, every_ms), Book(market))

    async def orders(self, market: str) -> BookStream[OrderBook]:
        """The mirrored book of a market order by order: the queue at every price. As `book`."""
        market = await self._ticker(market)
        return await self._open_book(_Choice("orders", market), OrderBook(market))

    async def _open_book(self, choice: _Choice, book: Any) -> BookStream[Any]:
        stream = BookStream[Any](book)
        self._books.setdefault(choice, []).append(stream)
        try:
            await self._subscribe_to(choice)
            await anext(stream)
        except BaseException:
            stream.close()
            raise
        stream.changed()
        return stream

    async def _subscribe_to(self, choice: _Choice) -> m.Ack:
        channel, market, depth, every_ms = choice
        return await self.subscribe(channel, market, depth=depth, every_ms=every_ms)

    async def ticker(self, market: str = "", *, every_ms: m.EveryMs = 0) -> Stream[m.Ticker]:
        """Last and best prices and the last 24 hours, of one market, of those that a wildcard
        covers, or of all: now, and when they change, every 100 ms at most or as asked."""
        paced = every_ms or 100
        return await self._open_stream(
            Stream[m.Ticker](),
            await self._of_markets(m.Ticker, market, lambda x: x.every_ms == paced),
            "ticker",
            market,
            every_ms=every_ms,
        )

    async def candles(
        self,
        market: str,
        interval_s: m.IntervalS = 60,
        *,
        limit: int = 100,
        every_ms: m.EveryMs = 0,
    ) -> Stream[m.Candle]:
        """Of an interval, the last `limit` that are closed, the running one as it changes (every
        second or as asked), and each one's end."""
        paced = every_ms or 1000

        def wanted(candle: m.Candle) -> bool:
            return candle.interval_s == interval_s and candle.every_ms == paced

        return await self._open_stream(
            Stream[m.Candle](),
            await self._of_markets(m.Candle, market, wanted),
            "candles",
            market,
            interval_s=interval_s,
            every_ms=every_ms,
            limit=limit,
        )

    async def _of_markets(
        self, kind: type[Any], market: str, wanted: Callable[[Any], bool] = lambda _: True
    ) -> Callable[[m.ServerMessage], bool]:
        """Messages of this kind about one market or, by a wildcard or without one, about many.

        Which of many is the server's to know: two streams of one kind by different wildcards each
        have what both asked for.
        """
        ticker = "" if "*" in market else await self._ticker(market)
        return lambda x: (
            isinstance(x, kind) and ticker in {"", getattr(x, "market", "")} and wanted(x)
        )

    async def trades(self, market: str = "") -> Stream[m.Trade]:
        """Public trades of one market (its latest first), or from now on of those that a wildcard
        covers, or of all; each once."""
        seen: dict[str, int] = {}

        def is_newer(trade: m.Trade) -> bool:
            newest = seen.get(trade.market, 0)
            seen[trade.market] = max(trade.trade_id, newest)
            return trade.trade_id > newest

        wanted = await self._of_markets(m.Trade, market, is_newer)
        return await self._open_stream(Stream[m.Trade](), wanted, "trades", market)

    async def statuses(self, market: str = "") -> Stream[m.MarketStatus]:
        """The status of one market, of those that a wildcard covers, or of all: now, and whenever
        it changes."""
        wanted = await self._of_markets(m.MarketStatus, market)
        return await self._open_stream(Stream[m.MarketStatus](), wanted, "status", market)

    async def auctions(self, market: str = "") -> Stream[m.Auction]:
        """What calls would come to, and came to: of one market, of those that a wildcard covers,
        or of all."""
        wanted = await self._of_markets(m.Auction, market)
        return await self._open_stream(Stream[m.Auction](), wanted, "auction", market)

    async def index(self, market: str = "", *, limit: int = 1) -> Stream[m.Index]:
        """Published spot prices of one market, of those that a wildcard covers, or of all: the
        latest `limit` rounds, and each new one."""
        wanted = await self._of_markets(m.Index, market)
        return await self._open_stream(Stream[m.Index](), wanted, "index", market, limit=limit)

    async def private(self, *, from_aseq: int = 0) -> Stream[PrivateMessage]:
        """Everything about the account, in order: a snapshot first, then what changes.

        With `from_aseq` no snapshot, but every message from that number on as it was, one
        `CaughtUp`, and then what changes. Rejected (1020) if so old ones are not kept any more.
        """
        return await self._open_stream(
            Stream[PrivateMessage](),
            lambda x: isinstance(x, _Private),
            "account",
            from_aseq=from_aseq,
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

    async def subscribe(
        self,
        channel: str,
        market: str = "",
        *,
        depth: m.Depth = 0,
        every_ms: m.EveryMs = 0,
        interval_s: m.IntervalS = 0,
        limit: int = 0,
        from_aseq: int = 0,
    ) -> m.Ack:
        """The raw request; the methods above both ask and deliver."""

        return await self._ask(
            lambda i: m.Subscribe(i, channel, market, depth, every_ms, interval_s, limit, from_aseq)
        )

    async def unsubscribe(
        self,
        channel: str,
        market: str = "",
        *,
        depth: m.Depth = 0,
        every_ms: m.EveryMs = 0,
        interval_s: m.IntervalS = 0,
    ) -> m.Ack:
        """Tell the server to stop. Streams of the channel stay open, silent."""
        return await self._ask(
            lambda i: m.Unsubscribe(i, channel, market, depth, every_ms, interval_s)
        )

    async def _open_stream(
        self,
        stream: Stream[Any],
        wanted: Callable[[m.ServerMessage], bool],
        channel: str,
        market: str = "",
        **choices: Any,
    ) -> Stream[Any]:
        entry = (wanted, stream)
        # Before the request: the first messages come right behind the ack.
        self._streams.append(entry)
        try:
            await self.subscribe(channel, market, **choices)
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
    async def _ask(
        self, make: Callable[[int], m.ClientMessage], then: Callable[[Any], None] | None = None
    ) -> m.Ack:
        reply = await self._request(make, then)
        if not isinstance(reply, m.Ack):
            raise ProtocolViolation("a request was answered with something else than an ack")
        return reply

    async def _trade(
        self, make: Callable[[int], m.ClientMessage], then: Callable[[m.Ack], None]
    ) -> m.Ack:
        return await self._signed_first(lambda: self._ask(make, then))

    async def _signed_first(self, ask: Callable[[], Awaitable[_AnyReply]]) -> _AnyReply:
        """If the exchange does not go on before it has the signatures that are being gathered here,
        it gets them, and is asked once more: it has changed nothing. A signature that it refuses
        may be another order's, anywhere: only the exchange knows whether it goes on without."""
        try:
            return await ask()
        except Rejected as rejected:
            if self._signing is None or rejected.code not in SIGNATURES_WANTED:
                raise
            try:
                await self._signing.flush()
            except Rejected as refused:
                if refused.retry_ms:
                    raise
                log.error("orders stay unsigned: %s", refused)
        return await ask()

    async def _request(
        self, make: Callable[[int], m.ClientMessage], then: Callable[[Any], None] | None = None
    ) -> _Reply:
        """`then` is told the reply, also where the caller does not wait for it any more: what was
        asked for is done all the same."""
        self._last_id += 1
        request_id = self._last_id
        request = make(request_id)
        frame = self._encode(request)  # what cannot be encoded has taken nothing yet
        await self._in_flight.acquire()
        future: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()

        def ended(reply: asyncio.Future[_Reply]) -> None:
            self._in_flight.release()
            if not reply.cancelled() and reply.exception() is None and then is not None:
                then(reply.result())

        future.add_done_callback(ended)
        try:
            if self._gone is not None:
                raise self._gone
            self._waiting[request_id] = future
            if isinstance(request, m.Subscribe) and request.from_aseq:
                self._resumed[request_id] = request.from_aseq
            await self._socket.send(frame, text=self._is_text)
        except asyncio.CancelledError:
            raise  # it may be sent: it is in flight until its reply, or the connection's end
        except BaseException as error:
            self._waiting.pop(request_id, None)
            future.cancel()
            if isinstance(error, ConnectionClosed):
                raise self._gone or _disconnected(error) from error
            raise
        return await asyncio.shield(future)

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._socket.recv(decode=False)
                self._take(frame)
        except ConnectionClosed as closed:
            self._end(_disconnected(closed))
        except _UNREADABLE as error:
            self._end(ProtocolViolation(f"a frame from the server: {error!r}"))
            await self._socket.close()

    def _take(self, frame: bytes) -> None:
        try:
            message = self._decode(frame)
        except msgspec.ValidationError:
            unknown = self._decode_unknown(frame)
            if unknown.t in _KNOWN:
                raise
            if unknown.aseq == self.aseq + 1:
                self.aseq = unknown.aseq  # it is numbered
                if len(self.passed_over) >= PASSED_OVER_MAX:
                    self.passed_over.clear()
                self.passed_over.add(unknown.aseq)
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
            case m.Ack() | m.Pong() | m.ReplaceAck() | m.BatchAck():
                if from_aseq := self._resumed.pop(message.id, 0):
                    self.aseq = from_aseq - 1
                future = self._waiting.pop(message.id, None)
                if future is not None and not future.done():
                    future.set_result(message)
            case m.Reject():
                self._refused(message)
            case m.BookSnapshot() | m.BookDelta() | m.OrdersSnapshot() | m.OrdersDelta():
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
                    reject.scope,
                )
            )

    def _apply(self, message: BookMessage) -> None:
        match message:
            case m.BookSnapshot() | m.BookDelta():
                choice = _Choice("book", message.market, message.depth, message.every_ms)
            case _:
                choice = _Choice("orders", message.market)
        streams = [x for x in self._books.get(choice, ()) if not x.over]
        self._books[choice] = streams
        for stream in streams:
            try:
                if isinstance(message, m.BookSnapshot | m.OrdersSnapshot):
                    stream.book.apply_snapshot(message)
                    stream.synced = True
                elif not stream.synced:
                    continue  # its snapshot is still to come
                else:
                    stream.book.apply_delta(message)
            except BookOutOfStep:
                stream.resyncs += 1
                stream.synced = False
                self._mend(choice)
            else:
                stream.changed()

    def _mend(self, choice: _Choice) -> None:
        async def resubscribe() -> None:
            try:
                while True:
                    try:
                        await self._subscribe_to(choice)
                    except Rejected as rejected:
                        if not rejected.retry_ms:
                            raise
                        await asyncio.sleep(rejected.retry_ms / 1_000)
                    else:
                        return
            except CompexClientError as error:
                for stream in self._books.get(choice, ()):
                    stream.fail(error)

        task = asyncio.create_task(resubscribe())
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)


def _expected_leg(leg: m.Leg, markets: frozenset[str]) -> Expected:
    return Expected(leg.side == "buy", parse_price(leg.price), parse_qty(leg.qty), markets)


def _disconnected(closed: ConnectionClosed) -> Disconnected:
    frame = closed.rcvd or closed.sent
    return Disconnected(frame.code, frame.reason) if frame else Disconnected(0, "no close frame")
