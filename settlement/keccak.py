"""Keccak-256 of many short messages at once, and the trees that the vault builds of them.

Owns the permutation as machine code that goes through eight messages side by side, because one call
of a library for each of ten thousand nodes takes longer than all the rest of a batch. Invariant:
the same digests as any other Keccak-256 (Ethereum's padding, not SHA3's), the same roots as
`Fills.reduce`: a node is the hash of two words, the second zero where there is no right neighbour.
Pure; settlement's layouts call it.
"""

from typing import Any, Final, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

WORD: Final = 32  # bytes of a digest, and of a word of the EVM
MESSAGE_BYTES_MAX: Final = 135  # one block holds them, with a byte of padding
_RATE: Final = 136
_BESIDE: Final = 8  # messages side by side: two registers of 256 bits
_ROUNDS: Final = 24

Bytes: TypeAlias = NDArray[np.uint8]


def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """(what each round adds, how far each lane turns, where it goes), FIPS 202, 3.2."""
    added = np.zeros(_ROUNDS, np.uint64)
    register = 1
    for place in range(_ROUNDS):
        for j in range(7):
            if register & 1:
                added[place] |= np.uint64(1 << (1 << j) - 1)
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
    turned, moved = np.zeros(25, np.uint64), np.zeros(25, np.int64)
    x, y = 1, 0
    for t in range(24):
        turned[x + 5 * y] = (t + 1) * (t + 2) // 2 % 64
        x, y = y, (2 * x + 3 * y) % 5
    for lane in range(25):
        x, y = lane % 5, lane // 5
        moved[lane] = y + 5 * ((2 * x + 3 * y) % 5)
    return added, turned, moved


_ADDED, _TURNED, _MOVED = _constants()


@numba.njit(cache=True, nogil=True)
def _permute(state: Any, other: Any, sums: Any) -> None:
    """Keccak-f[1600], 25 lanes by _BESIDE states; the last two arrays are scratch."""
    one, top = np.uint64(1), np.uint64(63)
    for step in range(_ROUNDS):
        for x in range(5):
            for i in range(_BESIDE):
                sums[x, i] = (
                    state[x, i] ^ state[x + 5, i] ^ state[x + 10, i] ^ state[x + 15, i]
                    ^ state[x + 20, i]
                )  # fmt: skip
        for x in range(5):
            for i in range(_BESIDE):
                right = sums[(x + 1) % 5, i]
                theta = sums[(x + 4) % 5, i] ^ (right << one | right >> top)
                for y in range(5):
                    state[x + 5 * y, i] ^= theta
        for lane in range(25):
            left = _TURNED[lane]
            right = np.uint64(64) - left & top  # a lane that is not turned is or-ed with itself
            for i in range(_BESIDE):
                value = state[lane, i]
                other[_MOVED[lane], i] = value << left | value >> right
        for y in range(0, 25, 5):
            for x in range(5):
                for i in range(_BESIDE):
                    state[y + x, i] = other[y + x, i] ^ (
                        ~other[y + (x + 1) % 5, i] & other[y + (x + 2) % 5, i]
                    )
        for i in range(_BESIDE):
            state[0, i] ^= _ADDED[step]


@numba.njit(cache=True, nogil=True)
def _absorb(blocks: Any, found: Any) -> None:
    """Blocks of 17 lanes, padded, to digests of four lanes; both (n, lanes) of u64."""
    count = blocks.shape[0]
    state = np.empty((25, _BESIDE), np.uint64)
    other, sums = np.empty_like(state), np.empty((5, _BESIDE), np.uint64)
    for first in range(0, count, _BESIDE):
        used = min(_BESIDE, count - first)
        state[:] = 0
        for i in range(used):
            for lane in range(blocks.shape[1]):
                state[lane, i] = blocks[first + i, lane]
        _permute(state, other, sums)
        for i in range(used):
            for lane in range(4):
                found[first + i, lane] = state[lane, i]


def digests(messages: Bytes) -> Bytes:
    """(n, length) bytes to (n, WORD); length is at most MESSAGE_BYTES_MAX."""
    count, length = messages.shape
    assert length <= MESSAGE_BYTES_MAX
    blocks = np.zeros((count, _RATE), np.uint8)
    blocks[:, :length] = messages
    blocks[:, length] = 1
    blocks[:, -1] |= 0x80
    found = np.empty((count, WORD // 8), "<u8")
    _absorb(blocks.view("<u8"), found)
    return found.view(np.uint8)


def levels(leaves: Bytes) -> list[Bytes]:
    """From the leaves, (n, WORD), to the root, (1, WORD). At least one leaf."""
    found = [leaves]
    while len(row := found[-1]) > 1:
        if len(row) % 2:
            row = np.concatenate([row, np.zeros((1, WORD), np.uint8)])
        found.append(digests(row.reshape(-1, 2 * WORD)))
    return found
