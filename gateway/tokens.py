"""Bearers for plain HTTP requests: who may read an account without a websocket.

Invariant: a token is told once, when it is issued; here only its SHA-256 is kept, and compared in
constant time. Each reads the account of one wallet until its time is over or the session key that
asked for it may not read any more; in memory alone, so a restart ends them all. Sessions issue
them, `gateway.http` asks whose one is.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final, NamedTuple

from compex_client.messages import Scope

from engine.rejects import Reject
from gateway.keys import Keys
from gateway.wire import BadRequest

SECRET_BYTES: Final = 32
TOKENS_PER_WALLET: Final = 8
NS_PER_S: Final = 1_000_000_000
_SCHEME: Final = "bearer"


class _Issued(NamedTuple):
    digest: bytes  # of the secret
    wallet: bytes
    key: bytes  # the session key that asked for it; empty for the wallet itself
    until_s: int


class Tokens:
    """`time_ns` tells the time of day, `random_bytes(n)` must be unpredictable."""

    def __init__(
        self, time_ns: Callable[[], int], random_bytes: Callable[[int], bytes], keys: Keys
    ) -> None:
        self._keys = keys
        self._time_ns = time_ns
        self._random_bytes = random_bytes
        self._last = 0
        self._issued: dict[int, _Issued] = {}  # by the number that a token begins with
        self._of_wallet: dict[bytes, list[int]] = {}  # numbers, oldest first

    def issue(self, wallet: bytes, key: bytes, seconds: int) -> tuple[str, int]:
        """(the token, the Unix second at which it ends). The oldest of too many ends now."""
        self._last += 1
        secret = self._random_bytes(SECRET_BYTES)
        until_s = self._time_ns() // NS_PER_S + seconds
        self._issued[self._last] = _Issued(hashlib.sha256(secret).digest(), wallet, key, until_s)
        numbers = self._of_wallet.setdefault(wallet, [])
        numbers.append(self._last)
        if len(numbers) > TOKENS_PER_WALLET:
            del self._issued[numbers.pop(0)]
        return f"{self._last}.{secret.hex()}", until_s

    def wallet_of(self, authorization: str) -> bytes:
        """Whose account the header's bearer may read. Raises BadRequest."""
        scheme, _, token = authorization.partition(" ")
        number, _, secret = token.partition(".")
        issued = self._issued.get(int(number)) if number.isdecimal() and len(number) < 16 else None
        if scheme.lower() != _SCHEME or issued is None or not _is(secret, issued.digest):
            raise BadRequest(Reject.NOT_LOGGED_IN, None, "ask for a token over the websocket")
        now_s = self._time_ns() // NS_PER_S
        if now_s >= issued.until_s:
            raise BadRequest(Reject.KEY_EXPIRED, None, "the token's time is over")
        if issued.key:
            terms = self._keys.in_force(issued.wallet, issued.key, now_s)
            if not terms.scopes & Scope.READ:
                raise BadRequest(Reject.OUT_OF_SCOPE)
        return issued.wallet


def _is(secret: str, digest: bytes) -> bool:
    try:
        found = bytes.fromhex(secret)
    except ValueError:
        return False
    return hmac.compare_digest(hashlib.sha256(found).digest(), digest)
