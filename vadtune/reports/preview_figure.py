"""The figure of a preview: test images with their imputation, or imputed against true values of a table's columns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vadtune.reports.plot_style import BLUE, GREY, INK, heading, new_figure, png

if TYPE_CHECKING:
    from vadtune.evaluation.previews import Preview

_MISSING, _ERROR = "#f3b95f", "#a8322b"
_CELL = 0.95  # inches of an image
_MOST_PANELS, _PANELS_A_ROW, _PANEL = 30, 5, 2.0  # inches of a table's panel
_MOST_LETTERS = 24


def preview_plot(preview: Preview) -> bytes:
    """Returns a PNG: a grid of images, or for a table a scatter plot per column."""
    return _images(preview) if preview.image_shape else _columns(preview)


def _images(preview: Preview) -> bytes:
    """Returns truth, input, imputation and absolute error as four rows of pictures, a column per test image."""
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
    figure = new_figure(width, height)
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
                figure.text(x, 0.24 / height, f"{errors[j]:.3f}", ha="center", color=GREY, fontsize=9)
        figure.text((left - 0.12) / width, (y + _CELL / 2) / height, kind, ha="right", va="center", color=INK)
        if i in (0, 3):
            x = (left + n * (_CELL + gap) + 0.06) / width
            bar = figure.colorbar(shown, cax=figure.add_axes((x, y / height, 0.09 / width, _CELL / height)))
            bar.outline.set(linewidth=0.6, edgecolor="0.75")
            bar.ax.tick_params(labelsize=8, labelcolor=GREY, color="0.6", length=2, width=0.6)
            bar.ax.locator_params(nbins=3)
    figure.text((left - 0.12) / width, 0.24 / height, "RMSE, missing", ha="right", color=GREY, fontsize=9)
    title = f"{preview.source}: test images with {preview.ratio:.0%} of their pixels missing"
    heading(figure, title, _subtitle(preview))
    figure.legend(
        handles=[Patch(facecolor=_MISSING, label="missing")],
        loc="upper right",
        bbox_to_anchor=(1 - 0.12 / width, 1 - 0.46 / height),
        frameon=False,
        fontsize=9,
        labelcolor=GREY,
        handlelength=1,
        handleheight=1,
    )
    return png(figure)


def _columns(preview: Preview) -> bytes:
    """Returns scatter plots of imputed against true values of the missing cells, a panel per column."""
    d = len(preview.feature_names)
    shown = min(d, _MOST_PANELS)
    across = min(shown, _PANELS_A_ROW)
    down = math.ceil(shown / across)
    left, right, top, bottom, gap_x, gap_y = 0.85, 0.2, 1.25, 0.62, 0.52, 0.74
    width = max(left + across * _PANEL + (across - 1) * gap_x + right, 6.4)
    height = top + down * _PANEL + (down - 1) * gap_y + bottom
    figure = new_figure(width, height)
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
        axes.tick_params(labelsize=8, labelcolor=GREY, color="0.6", length=2.5)
        axes.ticklabel_format(style="sci", scilimits=(-3, 4), useMathText=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_offset_text().set(fontsize=7, color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("0.6")
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
        name = preview.feature_names[j]
        name = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
        axes.text(0, 1.13, name, transform=axes.transAxes, fontsize=10, fontweight="bold", color=INK)
        error = f"RMSE {errors[j]:.3g}" if cells.any() else "no missing cell"
        axes.text(0, 1.03, f"{error} ({cells.sum()} cells)", transform=axes.transAxes, fontsize=8.5, color=GREY)
    middle_x = (left + across * (_PANEL + gap_x) / 2 - gap_x / 2) / width
    middle_y = (bottom + down * (_PANEL + gap_y) / 2 - gap_y / 2) / height
    figure.text(middle_x, 0.14 / height, "true value", ha="center", color=INK)
    figure.text(0.16 / width, middle_y, "imputed value", va="center", rotation=90, color=INK)
    title = f"{preview.source}: imputed against true values, {preview.ratio:.0%} of cells missing"
    heading(figure, title, _subtitle(preview) + (f"; the first {shown} of {d} columns" if shown < d else ""))
    return png(figure)


def _subtitle(preview: Preview) -> str:
    return f"{preview.method}; rows no search has seen"


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Returns axis limits slightly beyond the values."""
    if not len(values):
        return 0.0, 1.0
    lowest, highest = float(values.min()), float(values.max())
    margin = 0.06 * (highest - lowest) or 0.5
    return lowest - margin, highest + margin
