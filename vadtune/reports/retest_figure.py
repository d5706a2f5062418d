"""The figure of a retest: error by missing ratio, a line per method."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from vadtune.reports.plot_style import BLUE, GREY, label_lines, new_figure, png, style_error_axes
from vadtune.reports.tables import ERROR_NAMES

if TYPE_CHECKING:
    from vadtune.evaluation.retest_scores import Retest

_MOST_TICKS, _MOST_NAMED_MODELS = 12, 6
_LIGHT_BLUE = "#6ba3dc"
_BASELINE_COLOURS = ("#8a8a8a", "#c98a00", "#2a8a57", "#b5403a", "#7b57a8")


def retest_plot(retest: Retest, metric: str = "missing_rmse") -> bytes:
    """Returns a PNG of error by missing ratio: a line per method, labelled at its end, with bars of a standard error.

    A baseline far above the other methods is cut off at the top; its label says how far it reaches.
    """
    figure = new_figure(9.2, 5.4)
    axes = figure.add_axes((0.08, 0.115, 0.66, 0.735))
    bottom, top = _error_range(retest, metric)
    axes.set_ylim(bottom, top)
    axes.axvline(retest.training_ratio, color="0.7", linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    labels: list[tuple[float, str, str]] = []
    for method, style in zip(retest.methods, _styles(retest), strict=True):
        means, errors = method.mean(metric), method.standard_error(metric)
        axes.errorbar(retest.ratios, means, yerr=errors, capsize=2.5, elinewidth=1, **style)
        worst = f" (up to {means.max():.3g})" if means.max() > top else ""
        labels.append((min(float(means[-1]), top), method.name + worst, style["color"]))
    bold = {label[1] for label, method in zip(labels, retest.methods, strict=True) if method is retest.headline}
    models = [label for label in labels if label[2] == _LIGHT_BLUE]
    if len(models) > _MOST_NAMED_MODELS:
        labels = [label for label in labels if label not in models]
        labels.append((float(np.median([height for height, _, _ in models])), f"each of {len(models)}", _LIGHT_BLUE))
    label_lines(axes, labels, last=retest.ratios[-1], bold=bold)
    axes.annotate(
        "fitted here",
        xy=(retest.training_ratio, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, 5),
        textcoords="offset points",
        color="0.45",
        fontsize=9,
    )
    style_error_axes(axes, ERROR_NAMES[metric], retest.units)
    if len(retest.ratios) <= _MOST_TICKS:
        axes.set_xticks(retest.ratios)
    spread = f"mean ± standard error over {len(retest.seeds)} masks" if len(retest.seeds) > 1 else "one mask"
    figure.text(0.02, 0.94, f"{retest.source}: imputation error by missing ratio", fontsize=14, fontweight="bold")
    figure.text(0.02, 0.89, f"{spread} at each ratio, the same masks for every method", color=GREY)
    return png(figure)


def _error_range(retest: Retest, metric: str) -> tuple[float, float]:
    """Returns the limits of the error axis: all models, and the baselines up to 2.5 times the models' largest error."""
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
    """Returns a line style per method: models in blue, their mean the thickest, baselines in other colours."""
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
