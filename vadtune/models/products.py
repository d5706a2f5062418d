"""Products of stacked matrices, by the faster of the two libraries at hand.

PyTorch multiplies on a CPU by Intel's MKL, which leaves half of the vector width (AVX-512) of an AMD processor unused.
numpy's OpenBLAS uses all of it, and multiplies float32 matrices of the sizes here up to twice as fast.

Shape comments: p members, b rows, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

T = TypeVar("T")

_WIDE = {"SkylakeX", "Cooperlake", "SapphireRapids"}  # OpenBLAS's names of its kernels for AVX-512
_SMALL = 64  # rows of a product that OpenBLAS computes in another way
_PROCESSOR = Path("/proc/cpuinfo")


@cache
def by_openblas() -> bool:
    """Whether products of float32 matrices on the CPU are left to OpenBLAS."""
    if not torch._C.has_mkl or not _PROCESSOR.is_file():
        return False
    kernels = {library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"}
    with _PROCESSOR.open() as file:
        return "AuthenticAMD" in file.read(200) and bool(kernels) and kernels <= _WIDE


def use_threads(count: int) -> None:
    """Lets products, and whatever else PyTorch computes in this process, take so many threads."""
    torch.set_num_threads(count)
    threadpool_limits(count, "blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread, so that a result does not depend on the cores there are. Decorates, too."""
    before = torch.get_num_threads()
    use_threads(1)
    try:
        yield
    finally:
        use_threads(before)


def on_threads(work: Callable[[slice], T], n: int, block: int) -> list[T]:
    """Returns what work on the parts of n rows gives, a part for each thread that PyTorch may take.

    Args:
        work: Machine code, which lets other threads run.
        n: Number of rows.
        block: Parts are whole blocks of so many rows, so that no result hangs on the number of threads.
    """
    share = block * -(-n // (block * torch.get_num_threads()))
    parts = [slice(start, min(start + share, n)) for start in range(0, n, share)]
    if len(parts) < 2:
        return [work(part) for part in parts]
    with one_thread(), ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts))


def product(
    one: Tensor, other: Tensor, bias: Tensor | None = None, out: Tensor | None = None, *, bf16: bool = False
) -> Tensor:
    """Returns one @ other + bias, (p, b, o).

    Args:
        one: (p, b, i).
        other: (p, i, o).
        bias: (p, 1, o); none without it.
        out: Where the result is written; new memory without it.
        bf16: Whether the product alone is computed from, and rounded to, bfloat16.
    """
    if bf16:
        rounded = torch.bmm(one.bfloat16(), other.bfloat16())
        out = rounded.to(one.dtype) if out is None else out.copy_(rounded)
        return out if bias is None else out.add_(bias)
    if torch.compiler.is_compiling() or not (one.is_cpu and by_openblas()):
        return torch.bmm(one, other, out=out) if bias is None else torch.baddbmm(bias, one, other, out=out)
    if out is None:
        out = one.new_empty(one.shape[0], one.shape[1], other.shape[2])
    with np.errstate(all="ignore"):
        if other.stride(-1) == 1 or one.shape[1] > _SMALL:
            np.matmul(one.numpy(), other.numpy(), out=out.numpy())
        else:  # its kernel for a small product with a transposed second factor is slow: (A Wᵀ)ᵀ = W Aᵀ
            turned = np.matmul(other.mT.numpy(), one.mT.contiguous().numpy())
            out.copy_(torch.from_numpy(turned).mT)
    return out if bias is None else out.add_(bias)
