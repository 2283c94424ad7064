"""Who is at the other end and what it may do: nonces, signatures, scopes, markets.

Invariant: a nonce is accepted once, from the connection it was given to; a session key does only
what the authorisation in force lets it, looked up again for every request; a request that no row
of the table names is refused to every key. Sessions call it. The digests themselves are defined in
`compex_client.wallet`, for both ends.
"""

import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from compex_client import messages as m
from compex_client.errors import WalletError
from compex_client.messages import Scope
from compex_client.wallet import (
    ADDRESS_BYTES,
    EVERY_KEY,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    Domain,
    SessionKey,
    address_text,
    login_digest,
    parse_hex,
    recover,
    revocation_digest,
    session_key_digest,
)

from engine.records import ALL_INSTRUMENTS, Command, CommandKind
from engine.rejects import Reject
from gateway.keys import Keys, Revocation
from gateway.mirror import MarketState
from gateway.public import CHANNELS
from gateway.wire import BadRequest

NOTHING: Final = Scope(0)  # what everybody may do
# What a session key must have for each request. None: only the wallet itself, whatever the key has.
SCOPE_OF: Final[dict[type[m.Request], Scope | None]] = {
    m.Login: NOTHING,
    m.Authorise: NOTHING,  # the signature in it speaks, not the connection
    m.Revoke: NOTHING,  # `Identity.revocation` lets only a signature or the wallet itself
    m.Ping: NOTHING,
    m.Token: Scope.READ,
    m.Batch: Scope.TRADE,
    m.SignOrders: Scope.TRADE,
    m.CancelOnDisconnect: Scope.TRADE,
    m.DeadMan: Scope.TRADE,
    m.Replace: Scope.TRADE,
    m.Subscribe: Scope.READ,  # but for public channels
    m.Unsubscribe: NOTHING,
    m.Query: Scope.READ,  # but for public questions, and those of who signs
    m.New: Scope.TRADE,
    m.Quote: Scope.TRADE,
    m.Block: Scope.TRADE,
    m.Exclusive: Scope.TRADE,
    m.Basket: Scope.TRADE,
    m.Amend: Scope.TRADE,
    m.Cancel: Scope.TRADE,
    m.CancelAll: Scope.TRADE,
    m.Capacity: Scope.TRADE,
    m.Withdraw: Scope.WITHDRAW,
    m.Market: None,
    m.FeeTier: None,
}
# The same as plain numbers, for every request: flags are slow. None is a bit that no key has.
_NOBODYS: Final = 1 << 30
_NEEDED: Final = {kind: _NOBODYS if need is None else need.value for kind, need in SCOPE_OF.items()}
PUBLIC_CHANNELS: Final = frozenset({*CHANNELS, "sequenced"})
PUBLIC_QUESTIONS: Final = frozenset({"markets"})
SIGNERS_QUESTIONS: Final = frozenset({"unsigned"})  # for who trades as well as for who reads
_OF_AN_ORDER: Final = (CommandKind.CANCEL, CommandKind.AMEND)  # they name it, and no market
_TICKER: Final = re.compile(r"[A-Z0-9]+")
# class | region | grade | SPOT, or a kind of window and its start: each a whole field, or *.
_FIELD: Final = r"(?:\*|[A-Za-z0-9.-]+)"
_PATTERN: Final = re.compile(rf"{_FIELD}\|{_FIELD}\|{_FIELD}\|{_FIELD}(?:\|{_FIELD})?")


class SignatureRefused(BadRequest):
    """A refused signature, with what was checked, so that a wrong signer can find the fault."""

    def __init__(self, reject: Reject, field: str, digest: bytes, recovered: bytes = b"") -> None:
        super().__init__(reject, field)
        self.digest: Final = "0x" + digest.hex()
        self.recovered: Final = address_text(recovered) if recovered else ""


class LoginRefused(SignatureRefused):
    """Its nonce is used up."""


class Challenge:
    """The nonce of one connection. `random_bytes(n)` must be unpredictable."""

    def __init__(self, domain: Domain, random_bytes: Callable[[int], bytes]) -> None:
        self._domain = domain
        self._random_bytes = random_bytes
        self._nonce = random_bytes(NONCE_BYTES)

    @property
    def nonce(self) -> str:
        """For the next attempt: 0x and 64 hex digits."""
        return "0x" + self._nonce.hex()

    def verify(self, login: m.Login, wallet: bytes, signer: bytes) -> bytes:
        """The digest that the signer signed, to log in for the wallet. Raises BadRequest; the
        nonce is used up either way."""
        nonce = bytes_of(login.nonce, NONCE_BYTES, "nonce")
        if not hmac.compare_digest(nonce, self._nonce):
            raise BadRequest(Reject.NONCE_REPLAYED, "nonce")
        self._nonce = self._random_bytes(NONCE_BYTES)
        digest = login_digest(self._domain, wallet, nonce)
        _check_signer(digest, login.signature, signer, LoginRefused)
        return digest


class Identity:
    """For whom one connection acts: nobody, a wallet, or a wallet by one of its keys."""

    def __init__(
        self,
        domain: Domain,
        keys: Keys,
        random_bytes: Callable[[int], bytes],
        time_ns: Callable[[], int],
    ) -> None:
        self._domain = domain
        self._keys = keys
        self._time_ns = time_ns
        self.challenge: Final = Challenge(domain, random_bytes)
        self.wallet = b""  # 20 bytes once logged in
        self.key = b""  # 20 bytes if a key logged in for the wallet
        self._covered_by: SessionKey | None = None
        self._covered: dict[str, bool] = {}  # whether by that, by ticker

    @property
    def signer(self) -> bytes:
        return self.key or self.wallet

    def now_s(self) -> int:
        return self._time_ns() // 1_000_000_000

    def login(self, request: m.Login) -> None:
        """Raises BadRequest."""
        if self.wallet:
            raise BadRequest(Reject.ALREADY_LOGGED_IN)
        wallet = bytes_of(request.wallet, ADDRESS_BYTES, "wallet")
        key = bytes_of(request.key, ADDRESS_BYTES, "key") if request.key else b""
        if key == wallet:
            raise BadRequest(Reject.INVALID_FIELD, "key", "the wallet itself logs in without one")
        digest = self.challenge.verify(request, wallet, key or wallet)
        if key:
            try:
                self._keys.in_force(wallet, key, self.now_s())
            except BadRequest as bad:
                raise LoginRefused(bad.reject, "key", digest, key) from bad
        self.wallet, self.key = wallet, key

    def terms(self) -> SessionKey | None:
        """What the key may do now; None for the wallet itself, and for nobody, whom accounts
        refuse. Raises BadRequest if the key is not in force any more."""
        return self._keys.in_force(self.wallet, self.key, self.now_s()) if self.key else None

    def permit(self, request: m.ClientMessage) -> None:
        """Raises BadRequest where a key has not the scope, or is not in force any more."""
        terms = self.terms()
        if terms is None:
            return
        needed = _scopes_needed(request, terms.scopes)
        if needed & ~terms.scopes:
            raise BadRequest(Reject.OUT_OF_SCOPE, detail=_names(needed))

    def permit_command(
        self,
        command: Command,
        parts: Sequence[Command],
        of_order: int,
        markets: Mapping[int, MarketState],
    ) -> None:
        """Raises BadRequest where a key is not for every market of a command that would be
        sequenced. So no kind of request, however it names its markets, gets round it. `of_order`
        is the instrument of the order that the command names, 0 if that is not known."""
        terms = self.terms()
        if terms is None or not terms.markets or command.kind == CommandKind.WITHDRAW:
            return
        if command.kind in _OF_AN_ORDER:
            if not of_order:  # not even by guessing the id of one that is not told yet
                raise BadRequest(Reject.UNKNOWN_ORDER)
            instruments = {of_order}
        elif parts:  # the head of some kinds names no market itself
            instruments = {command.instrument, *(part.instrument for part in parts)} - {0}
        else:
            instruments = {command.instrument}
        assert instruments, "a command is about markets"
        for instrument in instruments:
            if instrument == ALL_INSTRUMENTS:
                words = "this would be about every market; name one"
                raise BadRequest(Reject.MARKET_OUT_OF_SCOPE, "market", words)
            market = markets[instrument]
            if not self._covers(terms, market):
                raise BadRequest(Reject.MARKET_OUT_OF_SCOPE, "market", market.ticker)

    def _covers(self, terms: SessionKey, market: MarketState) -> bool:
        if terms is not self._covered_by:
            self._covered_by, self._covered = terms, {}
        known = self._covered.get(market.ticker)
        if known is None:
            known = covers(terms.markets, market.ticker, market.symbol)
            self._covered[market.ticker] = known
        return known

    def permit_market(self, market: MarketState) -> None:
        """Raises BadRequest where a key is not for this market."""
        terms = self.terms()
        if terms is not None and terms.markets and not self._covers(terms, market):
            raise BadRequest(Reject.MARKET_OUT_OF_SCOPE, "market", market.ticker)

    def permit_every_market(self) -> None:
        """Raises BadRequest where a key is for some markets alone."""
        terms = self.terms()
        if terms is not None and terms.markets:
            words = "this would be about every market, and the key is for some"
            raise BadRequest(Reject.MARKET_OUT_OF_SCOPE, detail=words)

    def trading_key(self, name: str) -> tuple[SessionKey, bytes] | None:
        """The session key that signs orders, one that is named or the login's own, with the
        wallet's signature of it; None for the wallet itself. Raises BadRequest."""
        key = bytes_of(name, ADDRESS_BYTES, "key") if name else self.signer
        if key == self.wallet:
            return None
        terms, signature = self._keys.proof(self.wallet, key, self.now_s())
        if not terms.scopes & Scope.TRADE.value:
            raise BadRequest(Reject.OUT_OF_SCOPE, "key", _names(Scope.TRADE.value))
        return terms, signature

    def authorisation(self, request: m.Authorise) -> tuple[SessionKey, bytes]:
        """What a wallet signed, and its signature. Raises BadRequest."""
        wallet = bytes_of(request.wallet, ADDRESS_BYTES, "wallet")
        key = bytes_of(request.key, ADDRESS_BYTES, "key")
        if key in {wallet, EVERY_KEY}:
            raise BadRequest(Reject.INVALID_FIELD, "key", "it is another address than the wallet's")
        for name in request.markets:
            if not (_TICKER.fullmatch(name) or _PATTERN.fullmatch(name)):
                words = "a ticker, or class|region|grade|window, each whole or *"
                raise BadRequest(Reject.INVALID_FIELD, "markets", words)
        until_s = request.valid_until_s
        if until_s <= request.valid_from_s:
            raise BadRequest(Reject.INVALID_FIELD, "valid_until_s", "it ends before it begins")
        if until_s <= self.now_s():
            raise BadRequest(Reject.KEY_EXPIRED, "valid_until_s")
        terms = SessionKey(
            wallet=wallet,
            key=key,
            scopes=request.scopes,
            markets=tuple(request.markets),
            valid_from_s=request.valid_from_s,
            valid_until_s=until_s,
            nonce=request.nonce,
        )
        digest = session_key_digest(self._domain, terms)
        return terms, _check_signer(digest, request.signature, wallet, SignatureRefused)

    def revocation(self, request: m.Revoke) -> Revocation:
        """By the wallet that is logged in itself, or by the one that signed. Raises BadRequest."""
        key = bytes_of(request.key, ADDRESS_BYTES, "key") if request.key else EVERY_KEY
        if not request.signature:
            if not self.wallet:
                raise BadRequest(Reject.NOT_LOGGED_IN)
            if self.key:
                raise BadRequest(Reject.OUT_OF_SCOPE, detail=_names(_NOBODYS))
            if request.wallet and bytes_of(request.wallet, 20, "wallet") != self.wallet:
                raise BadRequest(Reject.WRONG_WALLET, "wallet")
            return Revocation(self.wallet, key, request.nonce, b"")
        wallet = bytes_of(request.wallet, ADDRESS_BYTES, "wallet")
        if not request.nonce:
            raise BadRequest(Reject.INVALID_FIELD, "nonce", "a signed revocation has one")
        digest = revocation_digest(self._domain, wallet, key, request.nonce)
        signature = _check_signer(digest, request.signature, wallet, SignatureRefused)
        return Revocation(wallet, key, request.nonce, signature)


def _scopes_needed(request: m.ClientMessage, scopes: int) -> int:
    """Of a key that has those: some questions may be asked with either of two."""
    if isinstance(request, m.Subscribe) and request.channel in PUBLIC_CHANNELS:
        return 0
    if isinstance(request, m.Query):
        if request.what in PUBLIC_QUESTIONS:
            return 0
        if request.what in SIGNERS_QUESTIONS and scopes & Scope.TRADE.value:
            return Scope.TRADE.value
    return _NEEDED.get(type(request), _NOBODYS)


def _names(needed: int) -> str:
    if needed == _NOBODYS:
        return "only the wallet itself may do this"
    return " and ".join(str(scope.name).lower() for scope in Scope if scope & needed)


def covers(patterns: Iterable[str], ticker: str, symbol: str) -> bool:
    """Whether one of them names the market: its ticker, or its symbol field by field."""
    fields = symbol.split("|", 3)  # the window with its start, if it has one, is the last
    for pattern in patterns:
        *named, window = pattern.split("|", 3)
        if not named:
            if window == ticker:
                return True
            continue
        whole = all(want in {"*", have} for want, have in zip(named, fields, strict=False))
        if whole and _is_window(window, fields[3]):
            return True
    return False


def _is_window(want: str, have: str) -> bool:
    """A `*` alone is any window; behind a kind it is any start."""
    if want in {"*", have}:
        return True
    want_kind, _, want_start = want.partition("|")
    have_kind, _, have_start = have.partition("|")
    return want_kind in {"*", have_kind} and bool(have_start) and want_start in {"*", have_start}


def _check_signer(
    digest: bytes, signature: str, signer: bytes, refused: type[SignatureRefused]
) -> bytes:
    """The 65 bytes of the signature, if the signer made it. Raises SignatureRefused."""
    try:
        raw = parse_hex(signature, SIGNATURE_BYTES)
        recovered = recover(digest, raw)
    except WalletError as error:
        raise refused(Reject.BAD_SIGNATURE, "signature", digest) from error
    if not hmac.compare_digest(recovered, signer):
        raise refused(Reject.WRONG_WALLET, "signature", digest, recovered)
    return raw


def bytes_of(text: str, size_bytes: int, name: str) -> bytes:
    """What a field of hex digits says. Raises BadRequest."""
    try:
        return parse_hex(text, size_bytes)
    except WalletError as error:
        raise BadRequest(Reject.INVALID_FIELD, name, str(error)) from error
