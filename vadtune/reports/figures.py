"""Plots of test rows and what models made of them, and of a comparison of searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vadtune.reports.tables import BLUE, label_lines, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vadtune.evaluation.previews import Preview

_MISSING, _ERROR = "#f3b95f", "#a8322b"
_INK, _GREY = "0.15", "0.35"
_CELL = 0.95  # inches of an image
_MOST_PANELS, _PANELS_A_ROW, _PANEL = 30, 5, 2.0  # inches of a table's panel
_MOST_LETTERS = 24
_CURVES = (BLUE, "#c2571a", "#2a8a57", "#7b57a8", "#8a6d1f", "#555555")


def preview_plot(preview: Preview) -> bytes:
    """Returns a PNG: images by row and kind, or a panel per column of a table."""
    return _images(preview) if preview.image_shape else _columns(preview)


def _images(preview: Preview) -> bytes:
    """Truth, what was given, imputation and absolute error below each other, a column of pictures per test row."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Patch

    assert preview.image_shape is not None
    known = preview.x_true[~np.isnan(preview.x_true)]
    ink = LinearSegmentedColormap.from_list("ink", ["white", "black"]).with_extremes(bad=_MISSING)
    red = LinearSegmentedColormap.from_list("error", ["white", _ERROR]).with_extremes(bad="0.9")
    kinds: list[tuple[str, np.ndarray, Any, float, float]] = [
        ("truth", preview.x_true, ink, known.min(), known.max()),
        ("given", np.where(preview.mask, preview.x_true, np.nan), ink, known.min(), known.max()),
        ("imputed", preview.x_imputed, ink, known.min(), known.max()),
        ("absolute error", preview.error, red, 0.0, float(np.nanmax(preview.error)) or 1.0),
    ]
    n = len(preview.rows)
    left, right, top, bottom, gap = 1.25, 0.95, 0.95, 0.45, 0.1
    width, height = max(left + n * (_CELL + gap) + right, 6.4), top + 4 * (_CELL + gap) + bottom
    figure = _figure(width, height)
    errors = preview.rmse(axis=1)
    for i, (kind, values, colours, lowest, highest) in enumerate(kinds):
        y = height - top - (i + 1) * (_CELL + gap) + gap
        for j, row in enumerate(values):
            place = (left + j * (_CELL + gap)) / width, y / height, _CELL / width, _CELL / height
            axes = figure.add_axes(place)
            picture = np.ma.masked_invalid(row.reshape(preview.image_shape))
            shown = axes.imshow(picture, cmap=colours, vmin=lowest, vmax=highest, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="0.75", linewidth=0.6)
            if i == len(kinds) - 1:
                x = (left + j * (_CELL + gap) + _CELL / 2) / width
                figure.text(x, 0.24 / height, f"{errors[j]:.3f}", ha="center", color=_GREY, fontsize=9)
        figure.text((left - 0.12) / width, (y + _CELL / 2) / height, kind, ha="right", va="center", color=_INK)
        if i in (0, 3):
            x = (left + n * (_CELL + gap) + 0.06) / width
            bar = figure.colorbar(shown, cax=figure.add_axes((x, y / height, 0.09 / width, _CELL / height)))
            bar.outline.set(linewidth=0.6, edgecolor="0.75")
            bar.ax.tick_params(labelsize=8, labelcolor=_GREY, color="0.6", length=2, width=0.6)
            bar.ax.locator_params(nbins=3)
    figure.text((left - 0.12) / width, 0.24 / height, "RMSE, missing", ha="right", color=_GREY, fontsize=9)
    _head(figure, f"{preview.source}: test images with {preview.ratio:.0%} of their pixels missing", _by(preview))
    figure.legend(
        handles=[Patch(facecolor=_MISSING, label="missing")],
        loc="upper right",
        bbox_to_anchor=(1 - 0.12 / width, 1 - 0.46 / height),
        frameon=False,
        fontsize=9,
        labelcolor=_GREY,
        handlelength=1,
        handleheight=1,
    )
    return png(figure)


def _columns(preview: Preview) -> bytes:
    """Imputed against true values of the missing cells, a panel per column, with the diagonal."""
    d = len(preview.feature_names)
    shown = min(d, _MOST_PANELS)
    across = min(shown, _PANELS_A_ROW)
    down = math.ceil(shown / across)
    left, right, top, bottom, gap_x, gap_y = 0.85, 0.2, 1.25, 0.62, 0.52, 0.74
    width = max(left + across * _PANEL + (across - 1) * gap_x + right, 6.4)
    height = top + down * _PANEL + (down - 1) * gap_y + bottom
    figure = _figure(width, height)
    errors = preview.rmse(axis=0)
    for j in range(shown):
        row, column = divmod(j, across)
        x, y = left + column * (_PANEL + gap_x), height - top - row * (_PANEL + gap_y) - _PANEL
        axes = figure.add_axes((x / width, y / height, _PANEL / width, _PANEL / height))
        cells = preview.scored[:, j]
        truth, imputed = preview.x_true[cells, j], preview.x_imputed[cells, j]
        lowest, highest = _limits(np.concatenate([truth, imputed]))
        axes.plot([lowest, highest], [lowest, highest], color="0.7", linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        size = min(22.0, max(4.0, 900 / max(1, len(truth))))
        axes.scatter(truth, imputed, s=size, color=BLUE, alpha=0.55, linewidths=0, zorder=2)
        axes.set(xlim=(lowest, highest), ylim=(lowest, highest), aspect="equal")
        axes.locator_params(nbins=4)
        axes.tick_params(labelsize=8, labelcolor=_GREY, color="0.6", length=2.5)
        axes.ticklabel_format(style="sci", scilimits=(-3, 4), useMathText=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_offset_text().set(fontsize=7, color=_GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("0.6")
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
        name = preview.feature_names[j]
        name = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
        axes.text(0, 1.13, name, transform=axes.transAxes, fontsize=10, fontweight="bold", color=_INK)
        told = f"RMSE {errors[j]:.3g}" if cells.any() else "no missing cell"
        axes.text(0, 1.03, f"{told} ({cells.sum()} cells)", transform=axes.transAxes, fontsize=8.5, color=_GREY)
    middle_x = (left + across * (_PANEL + gap_x) / 2 - gap_x / 2) / width
    middle_y = (bottom + down * (_PANEL + gap_y) / 2 - gap_y / 2) / height
    figure.text(middle_x, 0.14 / height, "true value", ha="center", color=_INK)
    figure.text(0.16 / width, middle_y, "imputed value", va="center", rotation=90, color=_INK)
    title = f"{preview.source}: imputed against true values, {preview.ratio:.0%} of cells missing"
    _head(figure, title, _by(preview) + (f"; the first {shown} of {d} columns" if shown < d else ""))
    return png(figure)


def comparison_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns a PNG: error against missing ratio, a panel for each source, a line for each search, labelled directly.

    Solid where train rows miss as much as test rows, dotted where they are complete; searches of one family share a
    colour. The band reaches from the lowest to the highest score among the test masks.
    """
    sources = list(dict.fromkeys(row["source"] for row in rows))
    curves = {source: _curves([row for row in rows if row["source"] == source]) for source in sources}
    colours = _curve_colours(curves)
    left, across, gap = 0.8, 4.6 if len(sources) > 1 else 5.7, 0.45  # inches
    names = [0.088 * max(map(len, names)) + 0.3 for names in curves.values()]
    width = max(len(sources) * (left + across) + sum(names) + (len(sources) - 1) * gap, 7.6)
    figure = _figure(width, 5.4)
    x = left
    for source, room in zip(sources, names, strict=True):
        axes = figure.add_axes((x / width, 0.115, across / width, 0.70 if len(sources) > 1 else 0.735))
        _draw_curves(axes, curves[source], colours[source])
        if len(sources) > 1:
            axes.set_title(source, loc="left", fontweight="bold", color=_INK, fontsize=11)
        x += across + room + gap + left
    masks = rows[0]["masks"]
    told = [f"mean over {masks} test masks, band from the lowest to the highest" if masks > 1 else "one test mask"]
    if any(row["trained_on"] == "complete rows" for row in rows):
        told.append("dotted: trained on complete rows")
    _head(figure, f"{', '.join(sources)}: imputation error by missing ratio", "; ".join(told))
    return png(figure)


_Curve = list[Mapping[str, Any]]


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, _Curve]:
    """Returns the rows of each search by ratio, under the name of its line: its family, if that tells lines apart."""
    searches: dict[str, _Curve] = {}
    for row in sorted(rows, key=lambda row: row["missing_ratio"]):
        searches.setdefault(row["search"], []).append(row)
    kinds = {search: (curve[0]["family"], curve[0]["trained_on"]) for search, curve in searches.items()}
    if len(set(kinds.values())) < len(kinds) or any(family == "mixed" for family, _ in kinds.values()):
        return searches
    return {
        family.upper() + (", adversarial" if trained_on == "complete rows" else ""): searches[search]
        for search, (family, trained_on) in kinds.items()
    }


def _draw_curves(axes: Axes, curves: Mapping[str, _Curve], colours: Mapping[str, str]) -> None:
    labels: list[tuple[float, str, str]] = []
    for name, curve in curves.items():
        ratios, means = [row["missing_ratio"] for row in curve], [row["missing_rmse"] for row in curve]
        lowest, highest = ([row[f"missing_rmse_{end}"] for row in curve] for end in ("lowest", "highest"))
        complete = curve[0]["trained_on"] == "complete rows"
        axes.fill_between(ratios, lowest, highest, color=colours[name], alpha=0.16, linewidth=0)
        style: Any = (0, (1, 1.6)) if complete else "-"
        axes.plot(ratios, means, color=colours[name], linewidth=2.2, linestyle=style, marker="o", markersize=4.5)
        labels.append((means[-1], name, colours[name]))
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    shown = [row for curve in curves.values() for row in curve]
    ratios = sorted({row["missing_ratio"] for row in shown})
    label_lines(axes, labels, last=ratios[-1], bold=set(curves))
    axes.set_xlabel("share of cells missing")
    axes.set_ylabel(f"RMSE over missing test cells ({shown[0]['units']})")
    axes.set_xticks(ratios)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def _curve_colours(panels: Mapping[str, Mapping[str, _Curve]]) -> dict[str, dict[str, str]]:
    """Returns a colour for each line of each panel: one for each family, if that tells solid and dotted lines apart."""
    groups = {
        source: {name: name if name == curve[0]["search"] else curve[0]["family"] for name, curve in curves.items()}
        for source, curves in panels.items()
    }
    order = dict.fromkeys(group for names in groups.values() for group in names.values())
    colours = dict(zip(order, itertools.cycle(_CURVES)))
    return {source: {name: colours[group] for name, group in names.items()} for source, names in groups.items()}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    return figure


def _head(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.16 / width, 1 - 0.36 / height, title, fontsize=14, fontweight="bold")
    figure.text(0.16 / width, 1 - 0.64 / height, subtitle, color=_GREY)


def _by(preview: Preview) -> str:
    return f"{preview.method}; rows no search has seen"


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Returns limits a little beyond the values."""
    if not len(values):
        return 0.0, 1.0
    lowest, highest = float(values.min()), float(values.max())
    margin = 0.06 * (highest - lowest) or 0.5
    return lowest - margin, highest + margin
