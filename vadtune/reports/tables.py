"""Reports: rows as CSV, JSON or a table for people; a retest as tables and a plot."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # at run time it would cost every command that prints a table the import of torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vadtune.evaluation.retest import Retest

Rows = Sequence[Mapping[str, object]]
ERROR_NAMES = {"missing_rmse": "RMSE", "missing_mae": "MAE"}
_MOST_TICKS, _MOST_NAMED_MODELS = 12, 6
BLUE, _LIGHT_BLUE = "#0b4f9c", "#6ba3dc"
_BASELINE_COLOURS = ("#8a8a8a", "#c98a00", "#2a8a57", "#b5403a", "#7b57a8")


def to_csv(rows: Rows) -> str:
    """Returns rows that share their columns as CSV; None and NaN are empty fields."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _known(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def to_json(rows: Rows) -> str:
    """Returns rows as a JSON list of objects; NaN, which JSON lacks, becomes null."""
    return json.dumps([{name: _known(value) for name, value in row.items()} for row in rows], indent=1) + "\n"


def _known(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_text(rows: Rows, console: Console) -> str:
    """Returns rows as a table with as many of the columns, from the left, as the console is wide."""
    columns = list(rows[0]) if rows else []
    shown = list(columns)
    while len(shown) > 1 and not _fits(_table(rows, shown, console), console):
        shown.pop()
    text = _render(_table(rows, shown, console), console)
    if shown != columns:
        left_out = ", ".join(columns[len(shown) :])
        text += f"(not shown for want of width: {left_out}; --format csv has them)\n"
    return text


def _table(rows: Rows, columns: Sequence[str], console: Console) -> Table:
    table = _empty_table(console)
    for name in columns:
        numeric = all(isinstance(row[name], (int, float, type(None))) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    return table


def retest_text(retest: Retest, console: Console) -> str:
    """Returns a retest as one table per error: methods by missing ratio, the best of each ratio in bold."""
    return "\n".join(_retest_table(retest, metric, console) for metric in ERROR_NAMES)


def _retest_table(retest: Retest, metric: str, console: Console) -> str:
    best = np.min([method.mean(metric) for method in retest.methods], axis=0)
    several = len(retest.seeds) > 1
    for with_error in (several, False):  # without standard errors, where they would not fit
        table = _empty_table(console)
        table.add_column("method", no_wrap=True)
        for ratio in retest.ratios:
            table.add_column(f"{ratio:g}", justify="right", no_wrap=True)
        for method in retest.methods:
            means, errors = method.mean(metric), method.standard_error(metric)
            cells = [
                Text(
                    f"{mean:.3f} ±{error:.3f}" if with_error else f"{mean:.3f}", style="bold" if mean == lowest else ""
                )
                for mean, error, lowest in zip(means, errors, best, strict=True)
            ]
            table.add_row(Text(method.name), *cells)
        if _fits(table, console):
            break
    spread = ""
    if several:
        greatest = np.max([method.standard_error(metric) for method in retest.methods])
        spread = "± standard error " if with_error else f"(standard errors up to {greatest:.3f}) "
        spread = f"; mean {spread}over {len(retest.seeds)} masks"
    heading = (
        f"{retest.source}: {ERROR_NAMES[metric]} over missing test cells in {retest.units}, by missing ratio; "
        f"fitted at {retest.training_ratio:g}{spread}\n"
    )
    return heading + _render(table, console)


def retest_plot(retest: Retest, metric: str = "missing_rmse") -> bytes:
    """Returns a PNG: error against missing ratio, a line per method with bars of one standard error, labelled directly.

    A baseline that leaves the range of the others is cut off at the top, and its label says how far it went.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 5.4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.08, 0.115, 0.66, 0.735))
    bottom, top = _error_range(retest, metric)
    axes.set_ylim(bottom, top)
    axes.axvline(retest.training_ratio, color="0.7", linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    labels: list[tuple[float, str, dict[str, Any]]] = []
    for method, style in zip(retest.methods, _styles(retest), strict=True):
        means, errors = method.mean(metric), method.standard_error(metric)
        axes.errorbar(retest.ratios, means, yerr=errors, capsize=2.5, elinewidth=1, **style)
        worst = f" (up to {means.max():.3g})" if means.max() > top else ""
        labels.append((min(float(means[-1]), top), method.name + worst, style))
    models = [label for label, method in zip(labels, retest.methods, strict=True) if method.kind == "model"]
    if len(models) > _MOST_NAMED_MODELS:
        labels = [label for label in labels if label not in models]
        labels.append((float(np.median([height for height, _, _ in models])), f"each of {len(models)}", models[0][2]))
    bold = {name for _, name, style in labels if style["linewidth"] > 2}
    named = [(height, name, style["color"]) for height, name, style in labels]
    label_lines(axes, named, last=retest.ratios[-1], bold=bold)
    axes.annotate(
        "fitted here",
        xy=(retest.training_ratio, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, 5),
        textcoords="offset points",
        color="0.45",
        fontsize=9,
    )
    axes.set_xlabel("share of cells missing")
    axes.set_ylabel(f"{ERROR_NAMES[metric]} over missing test cells ({retest.units})")
    if len(retest.ratios) <= _MOST_TICKS:
        axes.set_xticks(retest.ratios)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    spread = f"mean ± standard error over {len(retest.seeds)} masks" if len(retest.seeds) > 1 else "one mask"
    figure.text(0.02, 0.94, f"{retest.source}: imputation error by missing ratio", fontsize=14, fontweight="bold")
    figure.text(0.02, 0.89, f"{spread} at each ratio, the same masks for every method", color="0.35")
    return png(figure)


def label_lines(axes: Axes, labels: Sequence[tuple[float, str, str]], *, last: float, bold: Collection[str]) -> None:
    """Names lines at their right ends, names moved apart where ends are near each other.

    Args:
        axes: Whose limits are final.
        labels: Height of the line's end, name and colour of each line.
        last: Where on the x axis the lines end.
        bold: The names to print in bold.
    """
    bottom, top = axes.get_ylim()
    places = spread_apart([height for height, _, _ in labels], (top - bottom) / 23)
    for (height, name, colour), place in zip(labels, places, strict=True):
        axes.annotate(
            name,
            xy=(last, height),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=colour,
            fontweight="bold" if name in bold else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 2,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
        )


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG; the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _error_range(retest: Retest, metric: str) -> tuple[float, float]:
    """Returns the limits of the error axis: all the models, and baselines as far as they stay within 2.5 times that."""
    means = {method.name: method.mean(metric) for method in retest.methods}
    of_models = np.concatenate([means[method.name] for method in retest.methods if method.kind != "baseline"])
    everything = np.concatenate(list(means.values()))
    everything = everything[np.isfinite(everything)]
    if not len(everything):
        return 0.0, 1.0
    bound = 2.5 * np.max(of_models, initial=everything.min(), where=np.isfinite(of_models))
    lowest, highest = everything.min(), everything[everything <= bound].max()
    margin = 0.06 * (highest - lowest) or 0.1 * highest
    return max(0.0, lowest - 1.5 * margin), highest + margin


def _styles(retest: Retest) -> list[dict[str, Any]]:
    """Returns a line style per method: models in blue, their mean the boldest, baselines in colours of their own."""
    baseline_styles = itertools.cycle(zip(_BASELINE_COLOURS, "svD^P", strict=True))
    styles: list[dict[str, Any]] = []
    for method in retest.methods:
        if method is retest.headline:
            styles.append({"color": BLUE, "linewidth": 2.6, "marker": "o", "markersize": 6, "zorder": 4})
        elif method.kind == "model":
            styles.append({"color": _LIGHT_BLUE, "linewidth": 1.2, "marker": "o", "markersize": 3, "zorder": 3})
        else:
            colour, marker = next(baseline_styles)
            dashed = {"linewidth": 1.4, "linestyle": (0, (5, 2)), "markersize": 4, "zorder": 2}
            styles.append({"color": colour, "marker": marker, **dashed})
    return styles


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Returns heights near the given ones, in the same order, at least ``gap`` apart."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    wanted = np.asarray(heights)[order] - steps
    # The nearest ascending sequence, by pooling neighbours that are out of order (isotonic regression).
    pools: list[list[float]] = []
    for height in wanted:
        pools.append([float(height)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    placed = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) + steps
    spread = np.empty(len(heights))
    spread[order] = placed
    return spread.tolist()


def _empty_table(console: Console) -> Table:
    return Table(box=SIMPLE_HEAD if console.is_terminal else None, header_style="bold", pad_edge=False)


def _fits(table: Table, console: Console) -> bool:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width


def _render(table: Table, console: Console) -> str:
    """Returns a table as text, with the console's styles, without trailing blanks."""
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip()) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
