"""The embedded chain's memory on disk: the blocks it mined, one checksummed record each.

Owns the file's bytes and its lock. Invariant: `append` returns once the record is durable; a
record cut short at the end is one that nobody was told of and is dropped, anything else that does
not read back as written is refused with its offset. Only `devchain` uses it.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from settlement.errors import DamagedLog, DevchainInUse, DevchainStopped

# File header: magic, version, genesis time in Unix seconds, CRC-32 of those.
_HEADER: Final = struct.Struct("<8sIQI")
_MAGIC: Final = b"CPXCHAIN"
_VERSION: Final = 1
# Record header: payload length, CRC-32 of payload seeded with the CRC of the record before,
# CRC-32 of those two. The second one tells a damaged length from a record that was cut short.
_RECORD: Final = struct.Struct("<III")
# Payload: block time in Unix seconds, block hash, number of transactions, each a length and bytes.
_BLOCK: Final = struct.Struct("<Q32sI")
_LENGTH: Final = struct.Struct("<I")
RECORD_BYTES_MAX: Final = 64 << 20


class LoggedBlock(NamedTuple):
    time_s: int
    hash: bytes  # 32 bytes
    transactions: tuple[bytes, ...]  # raw, in the order of execution


def _pack(block: LoggedBlock) -> bytes:
    parts = [_BLOCK.pack(block.time_s, block.hash, len(block.transactions))]
    for raw in block.transactions:
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def _unpack(payload: bytes) -> LoggedBlock:
    time_s, block_hash, count = _BLOCK.unpack_from(payload)
    transactions: list[bytes] = []
    offset = _BLOCK.size
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(payload, offset)
        offset += _LENGTH.size
        transactions.append(payload[offset : offset + length])
        offset += length
    assert offset == len(payload), "the checksum covers the whole payload"
    return LoggedBlock(time_s, block_hash, tuple(transactions))


class BlockLog:
    """Open it, read all `blocks()`, then append. One process at a time."""

    def __init__(self, path: Path, genesis_time_s: int) -> None:
        """Open, or begin with `genesis_time_s`. Raises DevchainInUse, DamagedLog, OSError."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.genesis_time_s = self._read_or_write_header(genesis_time_s)
        except BlockingIOError:
            os.close(self._file)
            raise DevchainInUse(f"{path} is in use by another process") from None
        except BaseException:
            os.close(self._file)
            raise
        self._end = _HEADER.size
        self._checksum = 0
        self._failed = False

    @property
    def size(self) -> int:
        """Bytes in the file; `position` grows up to it while reading."""
        return os.fstat(self._file).st_size

    @property
    def position(self) -> int:
        return self._end

    def _damaged(self, offset: int, what: str) -> DamagedLog:
        return DamagedLog(
            f"{self._path}: {what} at byte {offset}. The file is not as it was written; put back "
            "a copy, or remove the whole state directory to begin anew."
        )

    def _read_or_write_header(self, genesis_time_s: int) -> int:
        header = os.pread(self._file, _HEADER.size, 0)
        if len(header) == _HEADER.size and any(header):
            magic, version, time_s, checksum = _HEADER.unpack(header)
            if zlib.crc32(header[:-4]) != checksum or (magic, version) != (_MAGIC, _VERSION):
                raise self._damaged(0, "no header of this version")
            return time_s
        if self.size > _HEADER.size:
            raise self._damaged(0, "no header")
        fields = _HEADER.pack(_MAGIC, _VERSION, genesis_time_s, 0)[:-4]
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, fields + struct.pack("<I", zlib.crc32(fields)), 0)
        os.fsync(self._file)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return genesis_time_s

    def blocks(self) -> Iterator[LoggedBlock]:
        """Every block, oldest first; cuts a torn end off. Raises DamagedLog."""
        size = self.size
        while self._end < size:
            payload = self._next_payload(size)
            if payload is None:
                os.ftruncate(self._file, self._end)
                os.fsync(self._file)
                return
            self._checksum = zlib.crc32(payload, self._checksum)
            self._end += _RECORD.size + len(payload)
            yield _unpack(payload)

    def _next_payload(self, size: int) -> bytes | None:
        """None when what follows is a record that was cut short while it was written."""
        offset = self._end
        header = os.pread(self._file, _RECORD.size, offset)
        if len(header) < _RECORD.size:
            return None
        length, checksum, own = _RECORD.unpack(header)
        if zlib.crc32(header[:-4]) != own:
            # A file may have grown before its bytes arrived: then all of them are zero.
            if not any(os.pread(self._file, size - offset, offset)):
                return None
            raise self._damaged(offset, "a damaged record header")
        if length > RECORD_BYTES_MAX:
            raise self._damaged(offset, "a record longer than any")
        end = offset + _RECORD.size + length
        payload = os.pread(self._file, length, offset + _RECORD.size)
        if end <= size and zlib.crc32(payload, self._checksum) == checksum:
            return payload
        if end >= size:
            return None
        raise self._damaged(offset, "a damaged record")

    def append(self, time_s: int, block_hash: bytes, transactions: Sequence[bytes]) -> None:
        """Durable on return. A failure is final: DevchainStopped, now and ever after."""
        if self._failed:
            raise DevchainStopped(f"{self._path} could not be written before")
        payload = _pack(LoggedBlock(time_s, block_hash, tuple(transactions)))
        assert len(payload) <= RECORD_BYTES_MAX
        checksum = zlib.crc32(payload, self._checksum)
        fields = _RECORD.pack(len(payload), checksum, 0)[:-4]
        record = fields + struct.pack("<I", zlib.crc32(fields)) + payload
        try:
            written = os.pwrite(self._file, record, self._end)
            if written != len(record):
                raise OSError(f"{written} of {len(record)} bytes written")
            os.fdatasync(self._file)
        except OSError as error:
            self._failed = True
            raise DevchainStopped(f"{self._path} cannot be written: {error}") from error
        self._checksum = checksum
        self._end += len(record)

    def close(self) -> None:
        os.close(self._file)
