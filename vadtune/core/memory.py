"""The memory that this process may still take, a check of it before large work begins, and what says it ran out."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vadtune.core.errors import DataError

_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")  # pages of address space
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = (  # of version 2 and 1: limit, use, and the part of the use that the system can free
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def available_memory() -> int | None:
    """Returns the free memory in bytes, by Linux and by limits of a container and of this process; None if unknown."""
    known = [*_free_of_machine(), *_free_of_container(), *_free_of_process()]
    return min(known) if known else None


def check_memory(needed: float, what: str, remedy: str) -> None:
    """Checks that there is enough memory before work begins.

    Args:
        needed: An estimate in bytes.
        what: What needs it; the message starts with that.
        remedy: What to do if there is not enough.

    Raises:
        DataError: There is not.
    """
    there = available_memory()
    if there is not None and needed > there:
        raise DataError(f"{what} needs about {_gigabytes(needed)} of memory, {_gigabytes(there)} are free; {remedy}")


def return_freed_memory() -> None:
    """Gives the memory that was freed back to the system, where the C library can; it keeps much of it otherwise.

    Measured on 60,000 x 784 values: 72 MB of 488 in the driver of a search, once the data is in Ray's object store.
    """
    with suppress(OSError, AttributeError):  # no C library of GNU
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that memory ran out, on a GPU or in PyTorch's allocator on a CPU."""
    by_name = type(error).__name__ in ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
    return by_name or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _free_of_machine() -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _free_of_container() -> Iterator[int]:
    for limit, use, stat in _LIMITS:
        with suppress(OSError, ValueError):  # no such group, or a limit named max
            most, used = (int((_CGROUPS / name).read_text()) for name in (limit, use))
            for line in (_CGROUPS / stat).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key in ("inactive_file", "total_inactive_file"):
                    used -= int(value)
                    break
            yield max(most - used, 0)


def _free_of_process() -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, IndexError):
            yield max(limit - int(_STATM.read_text().split()[0]) * resource.getpagesize(), 0)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB".replace(".0 GB", " GB")
