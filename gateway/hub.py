"""Who listens to what, and how a message reaches them: encoded and framed once for each codec.

Invariant: a listener is sent every message of its topics once, each topic's in the order told, and
whole batches of them as one chunk of bytes, so that a thousand listeners cost a thousand writes and
not ten thousand. A topic of many markets is one entry, however many they are: what is about one
market finds it by the wildcards that cover the market. What a topic paces is made by a timer that
runs only while something waits to be told. Public and private feeds tell; sessions listen through
the feed.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from compex_client import messages as m

from gateway.wire import Codec

EVERY_MARKET: Final = -1
Make = Callable[[], m.ServerMessage]
MakeIfNew = Callable[[], m.ServerMessage | None]


class Listener(Protocol):
    """One subscriber; `send` queues whole frames in its codec and never blocks."""

    @property
    def codec(self) -> Codec: ...

    def send(self, frames: bytes) -> None: ...


class Topic(NamedTuple):
    """A channel, what it is about, and the choices that make it another one.

    `of` is an instrument, an account, or EVERY_MARKET: all that the wildcard covers, "" covers all.
    """

    channel: str
    of: int
    wildcard: str = ""
    depth: m.Depth = 0
    every_ms: m.EveryMs = 0
    interval_s: m.IntervalS = 0

    @property
    def kind(self) -> "Topic":
        """The same of all markets."""
        return self._replace(of=EVERY_MARKET, wildcard="")


class Hub:
    """`covering` gives the wildcards that cover an instrument's market, "" not among them."""

    def __init__(self, covering: Callable[[int], Iterable[str]]) -> None:
        self.sent: Final[defaultdict[type, int]] = defaultdict(int)  # how many of each type
        self._covering = covering
        self._listeners: dict[Topic, dict[Listener, None]] = {}
        self._kinds: dict[str, Counter[Topic]] = {}  # of each channel, topics that have listeners
        self._wide: dict[Topic, set[str]] = {}  # of each kind, wildcards that have listeners
        self._gathered: dict[Topic, list[m.ServerMessage]] = {}
        self._paced: dict[int, dict[Topic, MakeIfNew]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def add(self, listener: Listener, topic: Topic) -> None:
        """Again is harmless."""
        listeners = self._listeners.get(topic)
        if listeners is None:
            listeners = self._listeners[topic] = {}
            self._kinds.setdefault(topic.channel, Counter())[topic.kind] += 1
            if topic.of == EVERY_MARKET:
                self._wide.setdefault(topic.kind, set()).add(topic.wildcard)
        listeners[listener] = None

    def remove(self, listener: Listener, topic: Topic) -> None:
        listeners = self._listeners.get(topic)
        if listeners is None:
            return
        listeners.pop(listener, None)
        if listeners:
            return
        del self._listeners[topic]
        kinds = self._kinds[topic.channel]
        kinds[topic.kind] -= 1
        if not kinds[topic.kind]:
            del kinds[topic.kind]
        if not kinds:
            del self._kinds[topic.channel]
        if topic.of == EVERY_MARKET:
            self._wide[topic.kind].discard(topic.wildcard)

    # --- who wants what ------------------------------------------------------------------------
    def has(self, channel: str) -> bool:
        """Whether anybody listens to anything in it."""
        return channel in self._kinds

    def topics(self, channel: str, of: int) -> list[Topic]:
        """What somebody listens to of this market in a channel: one topic for each choice."""
        kinds = self._kinds.get(channel)
        if not kinds:
            return []
        return [topic for kind in kinds if self.wants(topic := kind._replace(of=of))]

    def wants(self, topic: Topic) -> bool:
        """Whether anybody listens to it, by a topic of one market or of many."""
        if topic in self._listeners:
            return True
        if topic.channel not in self._kinds:
            return False
        wildcards = self._wide.get(topic._replace(of=EVERY_MARKET))
        if not wildcards or topic.of == EVERY_MARKET:
            return False
        return "" in wildcards or not wildcards.isdisjoint(self._covering(topic.of))

    def _audience(self, topic: Topic) -> Iterable[Listener]:
        """Each once, whether it asked for the market, for many, or for both."""
        one = self._listeners.get(topic, {})
        kind = topic._replace(of=EVERY_MARKET)
        wildcards = self._wide.get(kind)
        if not wildcards or topic.of == EVERY_MARKET:
            return one
        found = dict(one)
        if "" in wildcards:
            found |= self._listeners[kind]
        if wildcards != {""}:
            for wildcard in self._covering(topic.of):
                if wildcard in wildcards:
                    found |= self._listeners[kind._replace(wildcard=wildcard)]
        return found

    # --- telling -------------------------------------------------------------------------------
    def tell_now(self, topic: Topic, make: Make) -> None:
        """Private messages: each takes its place among the answers. Built only if wanted."""
        listeners = self._listeners.get(topic)
        if listeners:
            self._send(listeners, [make()])

    def gather(self, topic: Topic, make: Make) -> None:
        """Public messages, about one market: sent with the batch's others. Built only if wanted."""
        if self.wants(topic):
            self._gathered.setdefault(topic, []).append(make())

    def flush(self) -> None:
        """Send what was gathered, topic after topic."""
        gathered, self._gathered = self._gathered, {}
        for topic, messages in gathered.items():
            self._send(self._audience(topic), messages)

    def pace(self, topic: Topic, make: MakeIfNew) -> None:
        """There may be something new, which is made and told `every_ms` after the first of this.

        The latest `make` counts. For topics that somebody wants: it takes a running loop.
        """
        waiting = self._paced.setdefault(topic.every_ms, {})
        waiting[topic] = make
        if topic.every_ms not in self._timers:
            loop = asyncio.get_running_loop()
            seconds = topic.every_ms / 1_000
            self._timers[topic.every_ms] = loop.call_later(seconds, self.tick, topic.every_ms)

    def forget(self, topic: Topic) -> None:
        """What waits to be told of it is of no use to whoever comes next."""
        self._paced.get(topic.every_ms, {}).pop(topic, None)

    def tick(self, every_ms: int) -> None:
        """Tell what waits for this beat. Called by the timer."""
        timer = self._timers.pop(every_ms, None)
        if timer is not None:
            timer.cancel()
        for topic, make in self._paced.pop(every_ms, {}).items():
            if self.wants(topic):
                message = make()
                if message is not None:
                    self._send(self._audience(topic), [message])

    def _send(self, listeners: Iterable[Listener], messages: list[m.ServerMessage]) -> None:
        chunks: dict[Codec, bytes] = {}
        listeners = list(listeners)  # one that overflows leaves while we tell the others
        for listener in listeners:
            codec = listener.codec
            chunk = chunks.get(codec)
            if chunk is None:
                chunk = chunks[codec] = b"".join(map(codec.encode, messages))
            listener.send(chunk)
        for message in messages:
            self.sent[type(message)] += len(listeners)
