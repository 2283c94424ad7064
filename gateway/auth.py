"""Who is at the other end: one nonce per login attempt, and the wallet that signed it.

Invariant: a nonce is accepted once, from the connection it was given to. Sessions call it. The
digest itself is defined in `compex_client.wallet`, for both ends.
"""

import hmac
from collections.abc import Callable
from typing import Final

from compex_client import messages as m
from compex_client.errors import WalletError
from compex_client.wallet import (
    ADDRESS_BYTES,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    Domain,
    address_text,
    login_digest,
    parse_hex,
    recover,
)

from engine.rejects import Reject
from gateway.wire import BadRequest


class LoginRefused(BadRequest):
    """A refused login, with what was checked, so that a wrong signer can find the fault."""

    def __init__(self, reject: Reject, field: str, digest: bytes, recovered: bytes = b"") -> None:
        super().__init__(reject, field)
        self.digest: Final = "0x" + digest.hex()
        self.recovered: Final = address_text(recovered) if recovered else ""


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

    def verify(self, login: m.Login) -> bytes:
        """The 20-byte wallet that signed. Raises BadRequest; the nonce is used up either way."""
        wallet = bytes_of(login.wallet, ADDRESS_BYTES, "wallet")
        nonce = bytes_of(login.nonce, NONCE_BYTES, "nonce")
        if not hmac.compare_digest(nonce, self._nonce):
            raise BadRequest(Reject.NONCE_REPLAYED, "nonce")
        self._nonce = self._random_bytes(NONCE_BYTES)
        digest = login_digest(self._domain, wallet, nonce)
        try:
            recovered = recover(digest, parse_hex(login.signature, SIGNATURE_BYTES))
        except WalletError as error:
            raise LoginRefused(Reject.BAD_SIGNATURE, "signature", digest) from error
        if not hmac.compare_digest(recovered, wallet):
            raise LoginRefused(Reject.WRONG_WALLET, "signature", digest, recovered)
        return wallet


def bytes_of(text: str, size_bytes: int, name: str) -> bytes:
    """What a field of hex digits says. Raises BadRequest."""
    try:
        return parse_hex(text, size_bytes)
    except WalletError as error:
        raise BadRequest(Reject.INVALID_FIELD, name, str(error)) from error
