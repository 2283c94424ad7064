"""The gateway as one thing to start and stop: sessions and pages behind one port.

Puts together what answers (desk, health, the page) and what listens. Invariant: it ends in order:
first nobody new comes in, then everybody is told, then what was taken is answered, and only then
are connections closed. The node starts it.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from compex_client.messages import CloseCode, Closing

from engine.rejects import CompexError
from gateway.counts import Traffic
from gateway.health import Health
from gateway.http import WEB_ROOT, Routes
from gateway.limits import Outbox
from gateway.session import Desk, Session
from gateway.transport import OPEN_ACCESS, TICK_S, Access, HangUp, Listener
from gateway.wire import Codec

DRAIN_S: Final = 5.0  # for the requests that were taken before the end to be answered
DRAIN_ROUNDS_MAX: Final = 16  # an answer may cause a command: a cancel that waited for its order
DRAIN_LOOK_S: Final = 0.01  # between two looks whether there is nothing left to answer
RETRY_MS: Final = 1_000  # when somebody else may listen here


class GatewayServer:
    """`port` 0 takes any free one; `address` tells which after `start`."""

    def __init__(
        self,
        desk: Desk,
        health: Health,
        host: str = "127.0.0.1",
        port: int = 0,
        web_root: Path = WEB_ROOT,
        access: Access = OPEN_ACCESS,
        tick_s: float = TICK_S,
    ) -> None:
        self._desk = desk
        self._host = host
        self._port = port
        routes = Routes(desk, health, web_root)
        self._listener = Listener(
            routes.answer, self._converse, desk.limits, desk.counts, access, tick_s
        )
        routes.metrics.traffic = self._listener.traffic

    def _converse(self, outbox: Outbox, codec: Codec, address: str, hang_up: HangUp) -> Session:
        return Session(self._desk, outbox, codec, address, hang_up)

    async def start(self) -> None:
        self._desk.closing = None
        await self._listener.start(self._host, self._port)
        self._desk.begin()
        self._desk.port.when_stopped(self._abandon)

    def _abandon(self, reason: str) -> None:
        """The engine stopped by itself. What became of requests in flight nobody knows, so they
        are not answered; the connections end, and a client asks again after the restart."""
        why = f"the exchange has stopped: {reason}"
        self._listener.soon(lambda: self._listener.end_all(CloseCode.INTERNAL_ERROR, why))

    @property
    def address(self) -> tuple[str, int]:
        return self._listener.address

    def traffic(self) -> Traffic:
        return self._listener.traffic()

    async def stop(self) -> None:
        """Drain: nobody comes in, nothing more is taken, what was taken is answered; then close
        every connection with GOING_AWAY."""
        reason = "the node is shutting down"
        self._listener.stop_listening()
        closing = self._desk.closing = Closing(RETRY_MS, reason)
        self._listener.tell_all(closing)
        with contextlib.suppress(TimeoutError, CompexError):  # it may have stopped by itself
            async with asyncio.timeout(DRAIN_S):
                await self._answered()
        await self._listener.close(CloseCode.GOING_AWAY, reason)

    async def _answered(self) -> None:
        """By the engine, then by files and settlement, which answer without it."""
        for _ in range(DRAIN_ROUNDS_MAX):
            if not len(self._desk.pending):
                break
            await self._desk.port.settled()
            await asyncio.sleep(0)
        while self._desk.owes_replies:  # noqa: ASYNC110 - they tell sessions, and nobody else
            await asyncio.sleep(DRAIN_LOOK_S)
