from __future__ import annotations

import pytest

from vadtune.core.errors import ConfigError
from vadtune.evaluation.mask_options import parse_ratios, random_seed


@pytest.mark.parametrize(
    ("text", "ratios"),
    [
        ("0.5", [0.5]),
        ("0.1:0.9:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.1:0.9:0.3", [0.1, 0.4, 0.7]),
        ("0.9, .1,0.90", [0.1, 0.9]),
        ("0.1:0.3:0.1,0.95", [0.1, 0.2, 0.3, 0.95]),
        ("0.5:0.5:0.1", [0.5]),
        ("5e-1", [0.5]),
    ],
)
def test_ratios_are_parsed_exactly(text: str, ratios: list[float]) -> None:
    assert parse_ratios(text) == ratios


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "1", "1.5", "-0.1", "nan", "inf", "half", "0.1,,0.2", "0.1:0.9"),
        *("0.1:0.9:0", "0.1:0.9:-0.1", "0.9:0.1:0.1", "0.1:1:0.1", "0.1:nan:0.1", "0.1:0.9:0.1:0.1"),
        *("0.1:0.9:inf", "nan:0.9:0.1"),
    ],
)
def test_bad_ratios_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--ratios: takes ratios above 0 and below 1, .* try 0\.1:0\.9:0\.1"):
        parse_ratios(text)


def test_too_many_ratios_are_refused() -> None:
    assert len(parse_ratios("0.01:0.99:0.01")) == 99
    for step in ("1e-9", "1e-99"):
        with pytest.raises(ConfigError, match="at most 99 ratios"):
            parse_ratios(f"0.1:0.9:{step}")


def test_a_random_seed_leaves_room_for_the_seeds_of_masks() -> None:
    assert all(0 <= 1000 * random_seed() < 2**32 - 10_000 for _ in range(100))
