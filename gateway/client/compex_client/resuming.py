"""The account's numbered messages over every reconnection: each once, in order, without a gap.

Invariant: whatever becomes of connections, and of the exchange, what `Resuming` gives is numbered
`from_aseq`, `from_aseq` + 1, ...; missing is only what a later protocol tells and this one does not
know. It decides nothing about orders: what to do about those is the program's. For a program that
trades, or a drop copy beside it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from compex_client import messages as m
from compex_client.client import Client, PrivateMessage
from compex_client.errors import Disconnected, ProtocolViolation, Rejected, StreamOverflow
from compex_client.streams import Stream

RETRY_SECONDS: Final = (0.1, 5.0)  # between two attempts to connect: at first, and at most


class Resuming:
    """An async iterator; `connect` opens a logged-in client each time one is needed.

    Ends by raising Rejected: a login that is refused, or messages that are not kept any more; or
    ProtocolViolation: the exchange sent what it never should, and may do so again. Whoever asks for
    the next message all the same has it on a new connection, as after `close`. The program may use
    the `client`; but another stream of the account that it opens there ends the catching up, which
    then begins again on a new connection.
    """

    def __init__(self, connect: Callable[[], Awaitable[Client]], *, from_aseq: int = 1) -> None:
        self._connect = connect
        self._stream: Stream[PrivateMessage] | None = None
        self.next_aseq = from_aseq
        self.client: Client | None = None  # None while there is no connection
        self.connections = 0
        self.balances: m.Balances | None = None  # as last told

    def __aiter__(self) -> "Resuming":
        return self

    async def __anext__(self) -> m.Numbered:
        while True:
            stream = self._stream or await self._open()
            try:
                message = await anext(stream)
            except (Disconnected, StreamOverflow):
                await self.close()
                continue
            except ProtocolViolation:
                await self.close()
                raise
            is_numbered = isinstance(message, m.Numbered)
            if self._first_missing() < message.aseq + (not is_numbered):
                await self.close()  # another subscription has ended the catching up
            elif not is_numbered:
                self.balances = message.balances
            elif message.aseq == self.next_aseq:
                self.next_aseq += 1
                return message

    def _first_missing(self) -> int:
        """The next number, but for those of messages that nobody here can read."""
        while self.client is not None and self.next_aseq in self.client.passed_over:
            self.next_aseq += 1
        return self.next_aseq

    async def _open(self) -> Stream[PrivateMessage]:
        wait, longest = RETRY_SECONDS
        while True:
            try:
                self.client = await self._connect()
                self._stream = await self.client.private(from_aseq=self.next_aseq)
            except Rejected as error:
                await self.close()
                if not error.retry_ms:
                    raise
                await asyncio.sleep(error.retry_ms / 1_000)
            except Disconnected:
                await self.close()
                await asyncio.sleep(wait)
                wait = min(longest, wait * 2)
            except BaseException:  # nobody waits any more
                await self.close()
                raise
            else:
                self.connections += 1
                return self._stream

    async def close(self) -> None:
        """The connection; the next message opens another one."""
        client, self.client, self._stream = self.client, None, None
        if client is not None:
            await client.close()
