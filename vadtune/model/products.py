"""Products of stacked matrices, by the faster of the two libraries at hand.

PyTorch multiplies on a CPU by Intel's MKL, which leaves half of the vector width (AVX-512) of an AMD processor unused.
numpy's OpenBLAS uses all of it, and multiplies float32 matrices of the sizes here up to twice as fast; but not where
the second factor is transposed.

Shape comments: p members, b rows, i inputs, o outputs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

_WIDE = {"SkylakeX", "Cooperlake", "SapphireRapids"}  # OpenBLAS's names of its kernels for AVX-512
_PROCESSOR = Path("/proc/cpuinfo")


@cache
def by_openblas() -> bool:
    """Whether products of float32 matrices on the CPU are left to OpenBLAS."""
    if not torch.backends.mkl.is_available() or not _PROCESSOR.is_file():  # type: ignore[no-untyped-call]
        return False
    kernels = {library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"}
    with _PROCESSOR.open() as file:
        return "AuthenticAMD" in file.read(200) and bool(kernels) and kernels <= _WIDE


def use_threads(count: int) -> None:
    """Lets products, and whatever else PyTorch computes in this process, take so many threads."""
    torch.set_num_threads(count)
    threadpool_limits(count, "blas")


def product(one: Tensor, other: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Returns one @ other + bias, (p, b, o).

    Args:
        one: (p, b, i).
        other: (p, i, o).
        bias: (p, 1, o); none without it.
        out: Where the result is written; new memory without it.
    """
    if one.is_cpu and by_openblas() and other.stride(-1) == 1:
        if out is None:
            out = one.new_empty(one.shape[0], one.shape[1], other.shape[2])
        np.matmul(one.numpy(), other.numpy(), out=out.numpy())
        return out if bias is None else out.add_(bias)
    return torch.bmm(one, other, out=out) if bias is None else torch.baddbmm(bias, one, other, out=out)
