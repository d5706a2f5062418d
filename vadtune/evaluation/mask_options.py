"""Masks that a command line asks for: missing ratios and mask seeds."""

from __future__ import annotations

import secrets
from decimal import Decimal, InvalidOperation

from vadtune.core.errors import ConfigError

_MOST_RATIOS = 99
_RANDOM_SEEDS = 2**22  # masks are drawn from 1000 · seed + ..., which must stay below 2**32


def parse_ratios(text: str) -> list[float]:
    """Returns the missing ratios in a list such as ``0.1:0.9:0.1,0.95``, ascending and without repeats.

    Args:
        text: Ratios and ranges ``first:last:step``, separated by commas.

    Raises:
        ConfigError: A part is neither a ratio in (0, 1) nor a range of them, or a range has too many.
    """
    ratios: set[Decimal] = set()  # decimals, so that 0.1:0.9:0.1 holds 0.3 and not 0.30000000000000004
    for part in text.split(","):
        try:
            numbers = [Decimal(number.strip()) for number in part.split(":")]
        except InvalidOperation:
            numbers = []
        if not all(number.is_finite() for number in numbers):  # "nan" parses, and cannot be compared
            numbers = []
        match numbers:
            case [ratio] if 0 < ratio < 1:
                ratios.add(ratio)
            case [first, last, step] if 0 < first <= last < 1 and step > 0:
                steps = (last - first) // step
                if steps >= _MOST_RATIOS:
                    raise ConfigError(f"--ratios: takes at most {_MOST_RATIOS} ratios, got '{part}'; use a larger step")
                ratios |= {first + i * step for i in range(int(steps) + 1)}
            case _:
                raise ConfigError(
                    f"--ratios: takes ratios above 0 and below 1, as 0.1,0.5 or first:last:step, got '{part}'; "
                    "try 0.1:0.9:0.1"
                )
    return [float(ratio) for ratio in sorted(ratios)]


def random_seed() -> int:
    """Returns a mask seed from the operating system's randomness."""
    return secrets.randbelow(_RANDOM_SEEDS)
