"""Number of threads that PyTorch and BLAS use in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


def use_threads(count: int) -> None:
    """Sets the number of threads of PyTorch and BLAS in this process."""
    torch.set_num_threads(count)
    threadpool_limits(count, "blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits PyTorch and BLAS to one thread, so results do not depend on the number of cores; also a decorator."""
    before = torch.get_num_threads()
    use_threads(1)
    try:
        yield
    finally:
        use_threads(before)
