"""What all figures share: colours, an empty figure, headings, axes of an error plot, labels at the ends of lines."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY, INK = "#0b4f9c", "0.35", "0.15"


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150)


def png(figure: Figure) -> bytes:
    """Returns a figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def heading(figure: Figure, title: str, subtitle: str) -> None:
    """Writes a bold title and a grey subtitle at the top left of a figure."""
    width, height = figure.get_size_inches()
    figure.text(0.16 / width, 1 - 0.36 / height, title, fontsize=14, fontweight="bold")
    figure.text(0.16 / width, 1 - 0.64 / height, subtitle, color=GREY)


def style_error_axes(axes: Axes, error: str, units: str) -> None:
    """Styles a plot of errors by missing ratio: axis labels, horizontal grid lines, no top or right border."""
    axes.set_xlabel("share of cells missing")
    axes.set_ylabel(f"{error} over missing test cells ({units})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def label_lines(axes: Axes, labels: Sequence[tuple[float, str, str]], *, last: float, bold: Collection[str]) -> None:
    """Names lines at their right ends; names are moved apart vertically where they would overlap.

    Args:
        axes: Axes with final limits.
        labels: For each line the height of its end, its name and its colour.
        last: The x coordinate of the ends.
        bold: Names to print in bold.
    """
    bottom, top = axes.get_ylim()
    places = spread_apart([height for height, _, _ in labels], (top - bottom) / 23)
    for (height, name, colour), place in zip(labels, places, strict=True):
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 5, "relpos": (0, 0.5)}
        axes.annotate(
            name,
            xy=(last, height),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=colour,
            fontweight="bold" if name in bold else "normal",
            arrowprops=arrow,
        )


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Returns the heights nearest to the given ones, in the same order, that are at least ``gap`` apart."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    spread = np.empty(len(heights))
    spread[order] = isotonic_regression(np.asarray(heights)[order] - steps).x + steps
    return spread.tolist()
