"""Derived randomness: every draw comes from a generator seeded by (seed, purpose, index), so no state is stored."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a generator is for; each purpose has its own stream."""

    WEIGHTS = 0
    ROWS = 1
    ORDER = 2
    NOISE = 3
    INFERENCE = 4
    DROPOUT = 5
    START = 6


def derived_generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """Returns a CPU generator seeded by (seed, purpose, index), the index being an epoch, say."""
    state = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def standard_normal(*shape: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Returns standard normal draws of a shape, drawn on the CPU so that they are the same for every device."""
    return torch.randn(*shape, generator=generator).to(device)
