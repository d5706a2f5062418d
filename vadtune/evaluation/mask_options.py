"""What a command line asks a retest for: missing ratios, mask seeds, test rows."""

from __future__ import annotations

import secrets
from decimal import Decimal, InvalidOperation

from vadtune.core.errors import ConfigError

MOST_ROWS = 10_000  # test rows that are scored unless more are asked for: as many as MNIST has
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
        numbers = part.split(":")
        try:
            first, last, step = map(Decimal, numbers if len(numbers) == 3 else (part, part, "1"))
            if not (text.isascii() and 0 < first <= last < 1 and step > 0 and step.is_finite()):
                raise ValueError
        except (InvalidOperation, ValueError) as error:
            raise ConfigError(
                f"--ratios: takes ratios above 0 and below 1, as 0.1,0.5 or first:last:step, got '{part}'; "
                "try 0.1:0.9:0.1"
            ) from error
        if (last - first) / step >= _MOST_RATIOS:
            raise ConfigError(f"--ratios: takes at most {_MOST_RATIOS} ratios, got '{part}'; use a larger step")
        ratios |= {first + i * step for i in range(int((last - first) / step) + 1)}
    return [float(ratio) for ratio in sorted(ratios)]


def parse_rows(text: str | None) -> int | None:
    """Returns the number of test rows to score, 10,000 for None; None for ``all``.

    Raises:
        ConfigError: It is neither a number of rows nor ``all``.
    """
    if text == "all":
        return None
    if text is None:
        return MOST_ROWS
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text)):
        raise ConfigError(f"--rows: takes a number of test rows above 0, or all, got '{text}'; try {MOST_ROWS}")
    return int(text)


def random_seed() -> int:
    """Returns a mask seed from the operating system's randomness."""
    return secrets.randbelow(_RANDOM_SEEDS)
