from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from vadtune.data.retest_masks import MaskKey
from vadtune.evaluation.retest_scores import METRICS, MethodScores, Retest
from vadtune.reports.retest_figure import retest_plot
from vadtune.reports.tables import retest_text, to_csv, to_json, to_text

ROWS = [{"trial": "a", "end": "stopped, early", "score": 0.123456, "none": None, "nan": float("nan"), "n": 3}]
WIDE = Console(width=10_000)


def made_up(models: int = 3, ratios: int = 4, seeds: int = 2, worst: float = 1.0) -> Retest:
    rng = np.random.default_rng(0)

    def scores(level: float) -> dict[str, np.ndarray]:
        return {metric: level + 0.01 * rng.random((ratios, seeds)) for metric in METRICS}

    methods = [MethodScores(f"{i + 1}-trial", "model", scores(0.2)) for i in range(models)]
    if models > 1:
        methods.append(MethodScores(f"mean of {models} models", "mean of models", scores(0.18)))
    methods += [MethodScores("mean", "baseline", scores(0.3)), MethodScores("iterative", "baseline", scores(worst))]
    tested = [round(0.1 * (i + 1), 1) for i in range(ratios)]
    keys = {MaskKey(ratio, seed): "0" * 64 for ratio in tested for seed in range(seeds)}
    return Retest("iris", 0.3, tested, list(range(seeds)), (30, 30), keys, methods)


def test_csv_quotes_and_leaves_unknown_values_empty() -> None:
    (row,) = csv.DictReader(to_csv(ROWS).splitlines())
    assert row == {"trial": "a", "end": "stopped, early", "score": "0.123456", "none": "", "nan": "", "n": "3"}


def test_json_is_strict_and_exact() -> None:
    (row,) = json.loads(to_json(ROWS), parse_constant=pytest.fail)
    assert row == {"trial": "a", "end": "stopped, early", "score": 0.123456, "none": None, "nan": None, "n": 3}


def test_no_rows_are_no_trouble() -> None:
    assert json.loads(to_json([])) == []
    assert to_csv([]).strip() == ""
    assert to_text([], WIDE).strip() == ""


def test_a_plain_table_is_aligned_without_colours() -> None:
    rows = [{"name": "short", "value": 1.0}, {"name": "much longer", "value": 12.345678}]
    assert to_text(rows, WIDE).splitlines() == ["name         value", "short            1", "much longer  12.35"]


def test_a_table_on_a_terminal_has_a_rule_below_its_bold_header() -> None:
    console = Console(width=100, force_terminal=True, color_system="standard", file=io.StringIO())
    rows = [{"rank": 1, "end": "stopped", "score": 0.12345}, {"rank": None, "end": "長い", "score": None}]
    header, *lines = to_text(rows, console).splitlines()
    assert header == "\x1b[1m rank   end        score\x1b[0m"
    assert lines == [" ───────────────────────", "    1   stopped   0.1235", "    -   長い           -"]


def test_a_table_drops_what_the_terminal_has_no_room_for_and_says_so() -> None:
    rows = [{f"column{i}": "x" * 20 for i in range(6)}]
    lines = to_text(rows, Console(width=70)).splitlines()
    assert max(len(line) for line in lines[:2]) <= 70
    assert lines[0].split() == ["column0", "column1", "column2"]
    assert lines[2] == "(not shown for want of width: column3, column4, column5; --format csv has them)"


def test_markup_in_values_is_text() -> None:
    assert "[bold]x[/bold]" in to_text([{"end": "[bold]x[/bold]"}], WIDE)


def test_a_retest_is_a_table_per_error_with_methods_by_ratio() -> None:
    result = made_up()
    rmse, mae = retest_text(result, WIDE).split("\n\n")
    assert rmse.startswith("iris: RMSE over missing test cells")
    assert mae.startswith("iris: MAE")
    _, header, *rows = rmse.splitlines()
    assert header.split() == ["method", "0.1", "0.2", "0.3", "0.4"]
    assert len(rows) == len(result.methods)
    method = result.methods[0]
    assert f"{method.mean('missing_rmse')[0]:.3f} ±{method.standard_error('missing_rmse')[0]:.3f}" in rows[0]


def test_a_narrow_terminal_gets_means_and_the_greatest_error() -> None:
    text = retest_text(made_up(), Console(width=50))
    assert "(standard errors up to 0.0" in text
    assert all(len(line) <= 50 for line in text.splitlines() if not line.startswith("iris:"))


def test_the_best_method_of_a_ratio_is_bold_on_a_terminal() -> None:
    text = retest_text(made_up(), Console(width=200, force_terminal=True, color_system="standard", _environ={}))
    best = next(line for line in text.splitlines() if "mean of 3 models" in line)
    assert best.count("\x1b[1m") == 4


@pytest.mark.parametrize(
    "result",
    [
        made_up(),
        made_up(worst=1e6),
        made_up(worst=float("inf")),
        made_up(models=1, ratios=1, seeds=1),
        made_up(models=12, ratios=20),
    ],
    ids=["usual", "one baseline far off", "one baseline diverged", "one point", "many"],
)
def test_every_retest_can_be_drawn(result: Retest) -> None:
    png = retest_plot(result)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000
    assert retest_plot(result) == png, "the same retest gives the same bytes"
