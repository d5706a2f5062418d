"""Rows as CSV, JSON or a text table, and a retest as text tables."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from vadtune.core.text import one_line, printable

if TYPE_CHECKING:  # at run time it would import torch for every command that prints a table
    from vadtune.evaluation.retest_scores import Retest

Rows = Sequence[Mapping[str, object]]
ERROR_NAMES = {"missing_rmse": "RMSE", "missing_mae": "MAE"}


def to_csv(rows: Rows) -> str:
    """Returns rows with equal columns as CSV; None, NaN and infinity become empty fields."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _finite(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def to_json(rows: Rows) -> str:
    """Returns rows as a JSON list of objects; NaN and infinity become null."""
    return json.dumps([{name: _finite(value) for name, value in row.items()} for row in rows], indent=1) + "\n"


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_text(rows: Rows, console: Console) -> str:
    """Returns rows as a text table; columns at the right that do not fit the console's width are left out.

    It looks as one by rich, which takes 15 seconds for 10,000 rows.
    """
    columns = list(rows[0]) if rows else []
    rows = [{printable(name): value for name, value in row.items()} for row in rows]
    columns = list(map(printable, columns))
    cells = {name: [_cell(row[name]) for row in rows] for name in columns}
    widths = {name: max(map(cell_len, [name, *cells[name]])) for name in columns}
    edge, gap = (" ", "   ") if console.is_terminal else ("", "  ")
    shown = list(columns)
    while len(shown) > 1 and sum(widths[name] + len(gap) for name in shown) - len(gap) + 2 * len(edge) > console.width:
        shown.pop()
    for name in shown:
        numeric = all(isinstance(row[name], (int, float, type(None))) for row in rows)
        aligned = [name, *cells[name]]
        blanks = [" " * (widths[name] - cell_len(cell)) for cell in aligned]
        cells[name] = [blank + cell if numeric else cell + blank for cell, blank in zip(aligned, blanks, strict=True)]
    header, *lines = [edge + gap.join(line) for line in zip(*(cells[name] for name in shown), strict=True)] or [""]
    if console.is_terminal and shown:
        rule = "─" if console.encoding.startswith("utf") else "-"
        lines.insert(0, edge + rule * (cell_len(header) - len(edge)))
        with console.capture() as capture:
            console.print(Text(header.rstrip(), style="bold"), soft_wrap=True, end="")
        header = capture.get()
    text = "".join(f"{line.rstrip()}\n" for line in (header, *lines))
    if shown != columns:
        left_out = ", ".join(columns[len(shown) :])
        text += f"(not shown for want of width: {left_out}; --format csv has them)\n"
    return text


def retest_text(retest: Retest, console: Console) -> str:
    """Returns a retest as a table per error: methods by missing ratio, the best method of each ratio in bold."""
    return "\n".join(_retest_table(retest, metric, console) for metric in ERROR_NAMES)


def _retest_table(retest: Retest, metric: str, console: Console) -> str:
    best = np.min([method.mean(metric) for method in retest.methods], axis=0)
    several = len(retest.seeds) > 1
    for with_error in (several, False):  # without standard errors where they would not fit
        table = _empty_table(console)
        table.add_column("method", no_wrap=True)
        for ratio in retest.ratios:
            table.add_column(f"{ratio:g}", justify="right", no_wrap=True)
        for method in retest.methods:
            means, errors = method.mean(metric), method.standard_error(metric)
            cells = [
                Text(f"{mean:.3f}" + f" ±{error:.3f}" * with_error, style="bold" if mean == lowest else "")
                for mean, error, lowest in zip(means, errors, best, strict=True)
            ]
            table.add_row(Text(printable(method.name)), *cells)
        if _fits(table, console):
            break
    spread = ""
    if several:
        greatest = np.max([method.standard_error(metric) for method in retest.methods])
        spread = "± standard error " if with_error else f"(standard errors up to {greatest:.3f}) "
        spread = f"; mean {spread}over {len(retest.seeds)} masks"
    scored, rows = retest.rows
    sample = f" of {scored} of {rows} rows" if scored < rows else ""
    heading = (
        f"{retest.source}: {ERROR_NAMES[metric]} over missing test cells{sample} in {retest.units}, by missing ratio; "
        f"fitted at {retest.training_ratio:g}{spread}\n"
    )
    return heading + _render(table, console)


def _empty_table(console: Console) -> Table:
    return Table(box=SIMPLE_HEAD if console.is_terminal else None, header_style="bold", pad_edge=False)


def _fits(table: Table, console: Console) -> bool:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width


def _render(table: Table, console: Console) -> str:
    """Returns a table as text with the console's styles, without trailing blanks."""
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip()) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value), 200)
