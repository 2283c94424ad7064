"""Everything this package raises, as one tree. Any module of the client may import it.

CompexClientError
├── Rejected           the exchange refused a request, with a number; nothing changed
├── Disconnected       the connection is gone; what was in flight may or may not have been done
├── StreamOverflow     a stream was read too slowly and ended, so as not to lose data silently
├── BookOutOfStep      a delta does not follow, or the checksum disagrees (mended by the client)
├── ProtocolViolation  the server sent what it never should; else as Disconnected
├── WalletError        a key, an address or a signature is not one
└── NumberError        a decimal string is not acceptable
    ├── NotADecimal    it is not a plain decimal number
    └── TooFine        it has more decimals than the unit allows
"""


class CompexClientError(Exception):
    """Root of everything this package raises."""


class Rejected(CompexClientError):
    """The numbered refusal of one request.

    `field` names the offending field, if it is one; `retry_ms` is above zero when the same
    request may succeed after that many milliseconds, and `scope` says whose budget was too small:
    the "connection"'s, the "account"'s or the "address"'s. A refused login has the EIP-712 `digest`
    that the exchange checked and the wallet that the signature `recovered`.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        field: str | None = None,
        retry_ms: int = 0,
        recovered: str = "",
        digest: str = "",
        scope: str = "",
    ) -> None:
        super().__init__(f"{code} {reason}: {message}" + (f" ({field})" if field else ""))
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_ms = retry_ms
        self.recovered = recovered
        self.digest = digest
        self.scope = scope


class Disconnected(CompexClientError):
    """The connection ended with this websocket close code and reason (code 0: no close frame).

    A request in flight is neither done nor failed for sure: connect again and query it by its
    client id, or repeat it with the same client id, which is harmless.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"disconnected ({code}{': ' if reason else ''}{reason})")
        self.code = code
        self.reason = reason


class StreamOverflow(CompexClientError):
    pass


class BookOutOfStep(CompexClientError):
    pass


class ProtocolViolation(CompexClientError):
    pass


class WalletError(CompexClientError):
    pass


class NumberError(CompexClientError):
    pass


class NotADecimal(NumberError):
    pass


class TooFine(NumberError):
    pass
