"""How kernel functions are compiled, and where the machine code is kept.

Every function of the matching core is decorated with `kernel`: no Python objects, no GIL, cached
on disk. Invariant: the cache directory is named by a digest of every kernel source, because numba
checks only the file a function stands in and would otherwise run stale code that was inlined from
a neighbour. Imported by the kernel modules alone.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
from llvmlite import ir
from numba.core import config, types
from numba.extending import intrinsic

SOURCES: Final = (
    "records.py",
    "rejects.py",
    "kernel.py",
    "book.py",
    "reserve.py",
    "outbox.py",
    "bands.py",
    "trade.py",
    "waiting.py",
    "terms.py",
    "compound.py",
    "quotes.py",
    "money.py",
    "markets.py",
    "auction.py",
    "match.py",
)


def build_hash(sources: Path = Path(__file__).parent) -> str:
    """16 hex digits over every source that decides what a command does."""
    digest = hashlib.blake2b(digest_size=8)
    for name in SOURCES:
        source = (sources / name).read_bytes()
        digest.update(len(source).to_bytes(8, "little") + source)
    return digest.hexdigest()


def cache_directory(sources: Path = Path(__file__).parent) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "compex" / f"kernel-{build_hash(sources)}"


config.CACHE_DIR = str(cache_directory())  # pyright: ignore[reportAttributeAccessIssue]

# numba's casts, untyped because numba publishes no types for them.
int32: Final[Any] = numba.int32
int64: Final[Any] = numba.int64
uint8: Final[Any] = numba.uint8
uint16: Final[Any] = numba.uint16
uint32: Final[Any] = numba.uint32
uint64: Final[Any] = numba.uint64

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """Compile at first call, keep the machine code, release the GIL while running."""
    return _compiled(function, _nrt=False)


def inlined(function: _Function) -> _Function:
    """A kernel function that is always compiled into its callers: for the hot path's pieces."""
    return _compiled(function, _nrt=False, forceinline=True)


def spliced(function: _Function) -> _Function:
    """Put into its caller before that is compiled, and never compiled by itself: for a large one
    that few call. Compiling it twice would take as long as all the others."""
    return _compiled(function, _nrt=False, inline="always")


def allocating(function: _Function) -> _Function:
    """One that may make arrays, as `kernel` must not: counting references to the arrays it is
    given, on the chance that it keeps one, costs the hot path two locked instructions a command."""
    return _compiled(function, _nrt=True)


def _compiled(function: _Function, **options: Any) -> _Function:
    # No division here is by what may be 0, and nothing else raises.
    njit: Any = numba.njit
    decorate = njit(cache=True, nogil=True, no_cfunc_wrapper=True, error_model="numpy", **options)
    compiled: _Function = decorate(function)
    return compiled


def _count_leading(_context: Any, bits: Any) -> Any:
    def emit(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(bits), emit


_leading_zeros: Final[Any] = intrinsic(_count_leading)


def _prefetch_line(_context: Any, record: Any) -> Any:
    def emit(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        address = builder.bitcast(args[0], pointer)
        for_writing, keep, data = (ir.Constant(flag, value) for value in (1, 3, 1))
        builder.call(function, [address, for_writing, keep, data])
        return _ctx.get_dummy_value()

    return types.none(record), emit


# Ask for the cache line a record lies in, without waiting for it. Changes nothing.
prefetch: Final[Any] = intrinsic(_prefetch_line)


@kernel
def highest_bit(bits: Any) -> Any:
    """Index of the highest set bit of a non-zero uint64."""
    return uint64(63) - _leading_zeros(bits)
