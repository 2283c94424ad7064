"""Who listens to what, and how a message reaches them: encoded and framed once for each codec.

Invariant: a listener is sent every message of its topics once, each topic's in the order told, and
whole batches of them as one chunk of bytes, so that a thousand listeners cost a thousand writes and
not ten thousand. Public and private feeds tell; sessions listen through the feed.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from compex_client import messages as m

from gateway.wire import Codec

EVERY_MARKET: Final = -1
Make = Callable[[], m.ServerMessage]


class Listener(Protocol):
    """One subscriber; `send` queues whole frames in its codec and never blocks."""

    @property
    def codec(self) -> Codec: ...

    def send(self, frames: bytes) -> None: ...


class Topic(NamedTuple):
    """A channel, and the instrument (or EVERY_MARKET) or the account it is about."""

    channel: str
    of: int


class Hub:
    def __init__(self) -> None:
        self._listeners: dict[Topic, dict[Listener, None]] = {}
        self._gathered: dict[Topic, list[m.ServerMessage]] = {}

    def add(self, listener: Listener, topic: Topic) -> None:
        """Again is harmless."""
        self._listeners.setdefault(topic, {})[listener] = None

    def remove(self, listener: Listener, topic: Topic) -> None:
        listeners = self._listeners.get(topic, {})
        listeners.pop(listener, None)
        if not listeners:
            self._listeners.pop(topic, None)

    def tell_now(self, topic: Topic, make: Make) -> None:
        """Private messages: each takes its place among the answers. Built only if wanted."""
        listeners = self._listeners.get(topic)
        if listeners:
            _send(listeners, [make()])

    def gather(self, topic: Topic, make: Make) -> None:
        """Public messages, about one market: sent with the batch's others. Built only if wanted."""
        if topic in self._listeners or topic._replace(of=EVERY_MARKET) in self._listeners:
            self._gathered.setdefault(topic, []).append(make())

    def flush(self) -> None:
        """Send what was gathered, topic after topic."""
        gathered, self._gathered = self._gathered, {}
        for topic, messages in gathered.items():
            one = self._listeners.get(topic, {})
            every = self._listeners.get(topic._replace(of=EVERY_MARKET), {})
            _send({**one, **every}, messages)


def _send(listeners: Iterable[Listener], messages: list[m.ServerMessage]) -> None:
    chunks: dict[Codec, bytes] = {}
    for listener in list(listeners):  # one that overflows leaves while we tell the others
        codec = listener.codec
        chunk = chunks.get(codec)
        if chunk is None:
            chunk = chunks[codec] = b"".join(map(codec.encode, messages))
        listener.send(chunk)
