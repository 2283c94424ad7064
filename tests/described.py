"""Whether everything that goes over the wire in tests is as the published documents describe it.

`watch()` stands at the doors that everything passes, a session's `receive` and `_reply`, a codec's
`encode` and the routes' `answer`, in whatever test; what contradicts the documents is kept in
`violations`, and the test that was running fails by it. Of each type the first `EVERY_FIRST`
messages of a process are checked, then one of `ONE_OF`: a check takes some 10 µs, and long
profiles send millions.
"""

# pyright: reportPrivateUsage=false
from collections import Counter
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

import fastjsonschema
import msgspec
from compex_client import messages as m

from gateway.documents import REPLIES, REQUESTS, TOLD, asyncapi, in_draft_7, replies_to, tag_of
from gateway.http import HttpAnswer, HttpRequest, Routes, http_document
from gateway.session import BUILD, Session
from gateway.wire import BadRequest, Codec, Opcode
from tests.frames import frames_in

EVERY_FIRST: Final = 300
ONE_OF: Final = 25
Check = Callable[[Any], Any]

violations: list[str] = []
_seen: Counter[str] = Counter()
_asked: WeakKeyDictionary[Session, dict[int, set[str]]] = WeakKeyDictionary()


class Described:
    """The documents, as checks: compiled when first wanted."""

    def __init__(self) -> None:
        self._websocket = asyncapi(BUILD)["components"]
        self._http = in_draft_7(http_document(BUILD))
        self._checks: dict[str, Check] = {}
        self.replies = {tag_of(x): {tag_of(y) for y in replies_to(x)} for x in REQUESTS}
        self._reply_tags = {tag_of(x) for x in REPLIES}
        self._tags = {tag_of(x) for x in (*REQUESTS, *TOLD)}

    def message(self, tag: str) -> Check:
        """Raises fastjsonschema.JsonSchemaException for what is no message of this kind."""
        if tag not in self._tags:
            raise fastjsonschema.JsonSchemaException(f"no message is called {tag!r}")
        schema = {**self._websocket["messages"][tag]["payload"], "components": self._websocket}
        return self._compiled(tag, schema)

    def body(self, path: str, status: int) -> Check:
        """The same for the JSON at a path, as the document spells it."""
        responses = self._http["paths"][path]["get"]["responses"]
        told = responses.get(str(status)) or responses["default"]
        schema = told["content"]["application/json"]["schema"]
        components = {"components": self._http["components"]}
        return self._compiled(f"{path} {status}", {**schema, **components})

    def path(self, path: str) -> str:
        """As the document spells it."""
        if path in self._http["paths"]:
            return path
        return path.rpartition("/")[0] + "/{market}"

    def is_path(self, path: str) -> bool:
        return path in self._http["paths"]

    def is_reply(self, tag: str) -> bool:
        return tag in self._reply_tags

    def _compiled(self, name: str, schema: dict[str, Any]) -> Check:
        if name not in self._checks:
            self._checks[name] = fastjsonschema.compile(schema)
        return self._checks[name]


described: Final = Described()


def _is_due(name: str) -> bool:
    _seen[name] += 1
    return _seen[name] <= EVERY_FIRST or _seen[name] % ONE_OF == 0


def _check(check: Callable[[], Check], value: Any) -> None:
    try:
        check()(value)
    except (fastjsonschema.JsonSchemaException, KeyError) as error:
        violations.append(f"{error!r}: {str(value)[:500]}")


def _received(session: Session, frame: bytes | str) -> None:
    """A frame that the gateway takes for a request is one by the document, too."""
    try:
        request = session.codec.decode(frame)
    except BadRequest:
        return
    tag = tag_of(type(request))
    _asked.setdefault(session, {}).setdefault(request.id, set()).add(tag)
    if _is_due(tag):
        decode = _decode[session.codec.opcode]
        _check(lambda: described.message(tag), decode(frame))


def _encoded(frame: bytes) -> None:
    [(opcode, payload)] = frames_in(frame)
    message = _decode[opcode](payload)
    tag = str(message["t"])
    if _is_due(tag):
        _check(lambda: described.message(tag), message)


def _replied(session: Session, message: m.ServerMessage) -> None:
    tag = tag_of(type(message))
    if described.is_reply(tag):
        asked = _asked.get(session, {}).get(getattr(message, "id", 0), set())
        if asked and not any(tag in described.replies[x] for x in asked):
            violations.append(f"{tag} answers {asked}, which no document says")


def _answered(request: HttpRequest, answer: HttpAnswer) -> None:
    path = described.path(request.path)
    described_json = answer.kind == "application/json" and described.is_path(path)
    if described_json and answer.status != 304 and _is_due(path):
        body = msgspec.json.decode(answer.body)
        _check(lambda: described.body(path, answer.status), body)


_decode: Final[dict[int, Callable[[Any], Any]]] = {
    Opcode.TEXT: msgspec.json.decode,
    Opcode.BINARY: msgspec.msgpack.decode,
}


def watch() -> None:
    """From now on, in this process."""
    receive, reply = Session.receive, Session._reply
    encode, answer = Codec.encode, Routes.answer

    def watched_receive(self: Session, frame: bytes | str) -> None:
        _received(self, frame)
        receive(self, frame)

    def watched_reply(self: Session, message: m.ServerMessage) -> None:
        _replied(self, message)
        reply(self, message)

    def watched_encode(self: Codec, message: m.ServerMessage) -> bytes:
        frame = encode(self, message)
        _encoded(frame)
        return frame

    def watched_answer(self: Routes, request: HttpRequest, address: str) -> HttpAnswer:
        answered = answer(self, request, address)
        _answered(request, answered)
        return answered

    Session.receive, Session._reply = watched_receive, watched_reply
    Codec.encode, Routes.answer = watched_encode, watched_answer
