"""Who did what to the exchange itself: one line of JSON for each login, authorisation, revocation
and administrator's command, for good.

Owns `audit.log` in the node's directory, opened to append only. Invariant: every line carries the
digest of the line before it, so a line that was changed, removed or put in shows; no line has a
secret or a login's signature. What cannot be written is told to the caller, who refuses an
administrator's command for it and nothing else. A line is with the system when `write` returns, so
it outlives the process; a machine that loses its power may lose the last ones. Sessions write;
`compex audit` verifies.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from compex_client import messages as m
from compex_client.wallet import address_text

from engine.rejects import CompexError

AUDIT_FILE: Final = "audit.log"
LINE_BYTES_MAX: Final = 64 << 10  # far above the largest frame
_TAIL_BYTES: Final = 2 * LINE_BYTES_MAX  # the last line, and one behind it that was cut off
BEFORE_THE_FIRST: Final = "0" * 64
_NOT_KEPT: Final = ("signature", "t", "id")  # a login's is secret, the others say nothing here


class AuditError(CompexError):
    """The log's chain is broken, or it cannot be read; the message says where."""


class Line(msgspec.Struct, omit_defaults=True):
    """One line. `outcome` is "asked" where the command is still to be done, "done", or the
    number and name of its reject."""

    time_us: int
    what: str  # the request's tag
    wallet: str  # whom the connection is logged in for; empty: nobody
    peer: str
    request: dict[str, Any]
    outcome: str
    before: str  # SHA-256 of the line before, in hex
    key: str = ""  # the session key that logged the connection in, if it was one


class Found(NamedTuple):
    """What `verify` read: how many lines, how many of them cut off by a crash or a full disk, and
    the digest of the last one, by which lines removed from the end can be told."""

    lines: int
    cut_off: int
    digest: str


class Audit:
    """Appends. Raises AuditError if the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags, 0o640)
            size = os.fstat(self._file).st_size
            tail = os.pread(self._file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        except OSError as error:
            raise AuditError(f"{path} cannot be opened: {error}") from error
        last, ended, rest = tail.rpartition(b"\n")
        # A line without its end was cut off; the next one ends it and goes on from its digest.
        self._cut_off = rest
        self._before = _digest(last.rpartition(b"\n")[2]) if ended else BEFORE_THE_FIRST

    def write(
        self,
        time_us: int,
        wallet: bytes,
        key: bytes,
        peer: str,
        request: m.Request,
        outcome: str,
    ) -> None:
        """One line. Raises OSError if it is not all written."""
        if self._cut_off:
            self._append(b"\n", self._cut_off)
        line = Line(
            time_us=time_us,
            what=str(request.__struct_config__.tag),
            wallet=address_text(wallet) if wallet else "",
            peer=peer,
            request=_without_secrets(request),
            outcome=outcome,
            before=self._before,
            key=address_text(key) if key else "",
        )
        text = msgspec.json.encode(line)
        assert len(text) < LINE_BYTES_MAX, "a request is at most a frame"
        self._append(text + b"\n")

    def _append(self, data: bytes, cut_off: bytes = b"") -> None:
        written = os.write(self._file, data)
        whole = cut_off + data[:written]
        if not whole.endswith(b"\n"):
            self._cut_off = whole
            raise OSError(f"{written} of {len(data)} bytes of an audit line were written")
        self._cut_off = b""
        self._before = _digest(whole[:-1])

    def close(self) -> None:
        os.close(self._file)
        self._file = -1  # or a late line might go to whatever has the number next


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _without_secrets(request: m.Request) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(request)
    return {name: value for name, value in fields.items() if name not in _NOT_KEPT}


def verify(path: Path) -> Found:
    """Read the whole log and check its chain. Raises AuditError, naming the first line at fault."""
    lines = cut_off = 0
    before = BEFORE_THE_FIRST
    try:
        with path.open("rb") as file:
            for raw in file:
                text = raw.rstrip(b"\n")
                lines += 1
                try:
                    said = msgspec.json.decode(text, type=Line).before
                except msgspec.MsgspecError:
                    cut_off, said = cut_off + 1, before  # the next line's digest vouches for it
                if said != before:
                    raise AuditError(
                        f"{path}, line {lines}: the line before it is not the one it was written"
                        " after; lines were changed, removed or put in"
                    )
                before = _digest(text)
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error}") from error
    return Found(lines, cut_off, before)
