"""The figure of a comparison of searches: error by missing ratio, a panel per source and a line per search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vadtune.reports.plot_style import BLUE, INK, heading, label_lines, new_figure, png, style_error_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, "#c2571a", "#2a8a57", "#7b57a8", "#8a6d1f", "#555555")

_Curve = list[Mapping[str, Any]]


def comparison_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns a PNG of error by missing ratio: a panel per source and a line per search, labelled at its end.

    Lines are solid where train rows have the missing ratio of the test rows, dotted where train rows are complete.
    Searches of one family share a colour. Bands span the lowest to the highest score over the test masks.

    Args:
        rows: The rows of a ``Comparison``.
    """
    sources = list(dict.fromkeys(row["source"] for row in rows))
    curves = {source: _curves([row for row in rows if row["source"] == source]) for source in sources}
    colours = _curve_colours(curves)
    left, across, gap = 0.8, 4.6 if len(sources) > 1 else 5.7, 0.45  # inches
    names = [0.088 * max(map(len, names)) + 0.3 for names in curves.values()]
    width = max(len(sources) * (left + across) + sum(names) + (len(sources) - 1) * gap, 7.6)
    figure = new_figure(width, 5.4)
    x = left
    for source, room in zip(sources, names, strict=True):
        axes = figure.add_axes((x / width, 0.115, across / width, 0.70 if len(sources) > 1 else 0.735))
        _draw_curves(axes, curves[source], colours[source])
        if len(sources) > 1:
            axes.set_title(source, loc="left", fontweight="bold", color=INK, fontsize=11)
        x += across + room + gap + left
    masks = rows[0]["masks"]
    subtitle = f"mean over {masks} test masks, band from the lowest to the highest" if masks > 1 else "one test mask"
    if any(row["trained_on"] == "complete rows" for row in rows):
        subtitle += "; dotted: trained on complete rows"
    heading(figure, f"{', '.join(sources)}: imputation error by missing ratio", subtitle)
    return png(figure)


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, _Curve]:
    """Returns the rows of each search, by ratio, under the label of its line: the family where it is unique."""
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
    style_error_axes(axes, "RMSE", shown[0]["units"])
    axes.set_xticks(ratios)


def _curve_colours(panels: Mapping[str, Mapping[str, _Curve]]) -> dict[str, dict[str, str]]:
    """Returns a colour for each line of each panel: one per family where labels are families, else one per search."""
    groups = {
        source: {name: name if name == curve[0]["search"] else curve[0]["family"] for name, curve in curves.items()}
        for source, curves in panels.items()
    }
    order = dict.fromkeys(group for names in groups.values() for group in names.values())
    colours = dict(zip(order, itertools.cycle(_COLOURS)))
    return {source: {name: colours[group] for name, group in names.items()} for source, names in groups.items()}
