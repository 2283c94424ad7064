"""Bounded streams between the connection's reader and the program.

Invariant: a stream never drops an item silently. A `Stream` that is read too slowly ends with
StreamOverflow; a `BookStream` conflates, because only the latest book is true.
"""

import asyncio
from collections import deque
from typing import Final, Generic, TypeVar

from compex_client.book import Book
from compex_client.errors import CompexClientError, StreamOverflow
from compex_client.order_book import OrderBook

STREAM_ITEMS_MAX: Final = 65_536  # unread items of one stream

T = TypeVar("T")
B = TypeVar("B", Book, OrderBook)


class Stream(Generic[T]):
    """An async iterator of messages, in the order they came.

    Ends by raising Disconnected or StreamOverflow, after the items before; by StopAsyncIteration
    once closed.
    """

    def __init__(self, items_max: int = STREAM_ITEMS_MAX) -> None:
        self._items: deque[T] = deque()
        self._items_max = items_max
        self._wake = asyncio.Event()
        self._closed = False
        self._error: CompexClientError | None = None

    def push(self, item: T) -> None:
        """For the connection's reader only."""
        if self._error is None and not self._closed:
            if len(self._items) >= self._items_max:
                self.fail(StreamOverflow(f"{self._items_max} items were not read in time"))
                return
            self._items.append(item)
            self._wake.set()

    def fail(self, error: CompexClientError) -> None:
        """For the connection's reader only."""
        self._error = self._error or error
        self._wake.set()

    def close(self) -> None:
        """Take no more; what is unread is forgotten."""
        self._closed = True
        self._items.clear()
        self._wake.set()

    @property
    def over(self) -> bool:
        return self._closed or self._error is not None

    def __aiter__(self) -> "Stream[T]":
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        return self._items.popleft()


class BookStream(Generic[B]):
    """An async iterator that gives the mirrored book, by price or order by order, after changes.

    `book` is always the latest; several changes between two reads are given as one. Each
    iteration gives the same object, kept up to date in place.
    """

    def __init__(self, book: B) -> None:
        self.book: Final = book
        self.synced = False  # false before the first snapshot, and while a gap is being mended
        self.resyncs = 0  # times that a gap or a wrong checksum was mended by a new snapshot
        self._changed = asyncio.Event()
        self._closed = False
        self._error: CompexClientError | None = None

    def changed(self) -> None:
        """For the connection's reader only."""
        self._changed.set()

    def fail(self, error: CompexClientError) -> None:
        """For the connection's reader only."""
        self._error = self._error or error
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    @property
    def over(self) -> bool:
        return self._closed or self._error is not None

    def __aiter__(self) -> "BookStream[B]":
        return self

    async def __anext__(self) -> B:
        await self._changed.wait()
        if self._closed:
            raise StopAsyncIteration
        if self._error is not None:
            raise self._error
        self._changed.clear()
        return self.book
