"""Connections between clients and the node: frames take their time, in order, until one breaks.

Owns what is on its way. Invariant: frames of one direction arrive in the order in which they were
sent; of a connection that breaks, some first part of what was on its way still arrives and nothing
after it. A `Link` is the socket of `compex_client`'s `Client`, and does for the node's `Session`
what `gateway.server` does.
"""

from collections import deque
from contextvars import Context
from typing import Any, Final

from websockets.exceptions import ConnectionClosedError

from gateway.limits import Outbox
from gateway.session import Desk, Session
from tests.frames import frames_in
from tests.simulate.faults import Chance, Faults
from tests.simulate.loop import VirtualLoop

DELAY_SECONDS: Final = (0.0002, 0.03)
SLOW_READER_SECONDS: Final = 2.0


class Link:
    """One connection, made by a client and taken by a node."""

    def __init__(
        self, loop: VirtualLoop, chance: Chance, faults: Faults, desk: Desk, life: Context
    ) -> None:
        self._life = life
        self._loop = loop
        self._chance = chance
        self._faults = faults
        slow = chance.happens(faults.slow_reader_ppm)
        self._reading_seconds = SLOW_READER_SECONDS if slow else 0.0
        self._open = True
        self._to_node: deque[str] = deque()
        self._to_client: deque[bytes] = deque()
        self._arrives_seconds = {"node": 0.0, "client": 0.0}
        self._inbox: deque[bytes] = deque()
        self._reader: Any = None  # the future of a client that waits for a frame
        self._outbox = Outbox(desk.limits.outbound_bytes, self._leave, self.cut)
        self._session = Session(desk, self._outbox)
        self._session.open()

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def is_idle(self) -> bool:
        """Nothing is on its way, or nothing can arrive any more."""
        return not self._open or not (self._to_node or self._to_client)

    def _later(self, direction: str, what: Any) -> None:
        delay = self._chance.seconds(*DELAY_SECONDS)
        if direction == "client" and self._faults.slow_reader_ppm:
            delay += self._reading_seconds
        when = max(self._loop.time() + delay, self._arrives_seconds[direction])
        self._arrives_seconds[direction] = when
        self._loop.call_at(when, what)

    # --- as websockets' ClientConnection -------------------------------------------------------
    async def send(self, frame: bytes, text: bool) -> None:
        assert text, "text frames only"
        if not self._open:
            raise ConnectionClosedError(None, None)
        self._to_node.append(frame.decode())
        self._later("node", self._reach_node)
        if self._chance.happens(self._faults.cut_ppm):
            self._loop.call_later(self._chance.seconds(*DELAY_SECONDS), self.cut)

    async def recv(self, decode: bool) -> bytes:
        assert not decode
        while not self._inbox:
            if not self._open:
                raise ConnectionClosedError(None, None)
            self._reader = self._loop.create_future()
            await self._reader
        return self._inbox.popleft()

    async def close(self) -> None:
        self.cut()

    # --- on the way ----------------------------------------------------------------------------
    def _reach_node(self) -> None:
        if self._open and self._to_node:
            self._receive()

    def _receive(self) -> None:
        """What the session begins because of it is the node's, and ends with it."""
        self._life.copy().run(self._session.receive, self._to_node.popleft())

    def _leave(self) -> None:
        """The outbox has frames."""
        for chunk in self._outbox.take():
            self._to_client.append(chunk)
            self._later("client", self._reach_client)

    def _reach_client(self) -> None:
        if self._open and self._to_client:
            chunk = self._to_client.popleft()
            self._outbox.sent(chunk)
            self._hand_over(chunk)

    def _hand_over(self, chunk: bytes) -> None:
        self._inbox.extend(payload for _, payload in frames_in(chunk))
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- its end -------------------------------------------------------------------------------
    def cut(self, *, node_is_gone: bool = False) -> None:
        """Break it: what the other side's machine had received already is still read there."""
        if not self._open:
            return
        self._open = False
        random = self._chance.random
        if not node_is_gone:
            for _ in range(random.randrange(len(self._to_node) + 1)):
                self._receive()
        for _ in range(random.randrange(len(self._to_client) + 1)):
            self._hand_over(self._to_client.popleft())
        self._session.close()
        self._wake()
