"""A default search space for new data, from its numbers of rows and columns, its variance and its missing ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

_MAX_LATENT = 128
_NOISE = (0.003, 1.5)  # noise variance as a share of the variance of the data
_STEPS = 2_500
_EPOCHS = (100, 800)
_SMALL_TABLE = 400  # train rows
_SMALL_BATCH = 64
_GRACE = 0.3333  # of the epochs, and no number of epochs: these may be overridden
_LARGE_TABLE = 10_000
_MAX_CLOSED_FORM = 10**10  # rows · columns · latents², the cost of an iteration of a closed-form decoder

COMMENTS = {
    "model.latent": "up to the number of columns",
    "model.layers": "hidden layers; 0 is a linear decoder, fitted in closed form: probabilistic PCA, factor analysis",
    "model.skip": "a linear map in parallel with the hidden layers",
    "model.noise": "one noise variance for all columns, or one per column",
    "train.epochs": "enough steps for networks; closed-form decoders converge much sooner",
    "train.kl_weight": "twice the noise variance, which is .003 to 1.5 of the variance of the data",
    "train.net_lr": "closed-form decoders have no learning rates",
    "search.grace_epochs": "a share of the epochs; with few rows, a ninth says little about the final score",
    "search.initial": "some linear decoders and two networks, tried first",
}
"""Dotted key -> the comment that a written file has after it."""


def default_space(rows: int, columns: int, variance: float, missing_ratio: float) -> dict[str, dict[str, Any]]:
    """Returns the sections model, train, infer and search of a search file for new data.

    Linear and nonlinear decoders are both searched: if few cells of a row are observed, or a table is nearly linear,
    probabilistic PCA and factor analysis are hard to beat, and they are fitted fast. A skip leaves only the nonlinear
    part to the hidden layers, and a noise variance per column gives unpredictable columns less weight.

    - ``latent`` goes up to the number of columns: with a searched prior wide latents do no harm, and images gain from
      them. An iteration of a linear decoder costs O(rows · columns · latent²); above a limit, no linear decoders.
    - ``kl_weight`` is twice the noise variance, which is searched from .003 to 1.5 of the variance of observed cells.
    - ``weight_decay`` is searched from weak to strong, since either end wins on some table.
    - ``epochs`` gives networks about 2,500 steps, and row posteriors, updated once an epoch, at least 100 updates.
      Small tables have smaller batches, and learning rates up to twice as high.
    - ``grace_epochs`` is a third of the epochs on small tables, where a ninth predicts the final score of a network
      badly (a rank correlation of .68 on breast_cancer) and time does not matter.
    - ``hidden`` is wider if more cells were observed.
    - ``search.initial`` tries linear decoders with little and much noise before the sampler abandons them, and a
      smaller and a larger network.

    Args:
        rows: Train rows.
        columns: Columns.
        variance: Mean variance of the columns over observed train cells, in the scaler's units; about 1 if they are
            standardised.
        missing_ratio: Share of the train cells that are missing.
    """
    variance = max(variance, 1e-12)
    top = min(_MAX_LATENT, columns)
    solvable = rows * columns * top**2 <= _MAX_CLOSED_FORM
    observed = rows * columns * (1 - missing_ratio)
    small = rows < _SMALL_TABLE
    batch = _SMALL_BATCH if rows < 2 * _SMALL_TABLE else 128 if rows < _LARGE_TABLE else 512
    epochs = min(max(math.ceil(_STEPS / math.ceil(rows / batch)), _EPOCHS[0]), _EPOCHS[1])
    hidden = [64, 128] if observed < 10_000 else [128, 256]
    networks: dict[str, Any] = {"when": {"layers": ">0"}} if solvable else {}
    rates: dict[str, Any] = {"when": {"model.layers": ">0"}} if solvable else {}
    model: dict[str, Any] = {
        "family": "vad",
        "latent": {"logint": [2, top]} if top > 2 else {"int": [1, top]} if top > 1 else 1,
        "layers": {"int": [0 if solvable else 1, 2]},
        "hidden": {"choice": hidden, **networks},
        "activation": {"choice": ["relu", "tanh"], **networks},
        "skip": {"choice": [False, True], **networks},
        "noise": {"choice": ["fixed", "learned"]},
        "posterior": {"choice": ["learned", "fixed"], **networks},
        "log_var": {"uniform": [-6, -0.6], "when": {"posterior": "fixed"}},
    }
    train: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch,
        "kl_weight": {"loguniform": [_kl_weight(ratio, variance) for ratio in _NOISE]},
        "net_lr": {"loguniform": [1e-3, 1e-2 if small else 5e-3], **rates},
        "latent_lr": {"loguniform": [0.02, 0.3], **rates},
        "weight_decay": {"loguniform": [1e-4, 1.0]},
    }
    return {
        "model": model,
        "train": train,
        "infer": {"steps": 100, "lr": {"loguniform": [0.1, 0.25], **rates}},
        "search": {
            "samples": 64,
            "sampler": "tpe",
            "scheduler": "asha",
            **({"grace_epochs": _GRACE} if batch == _SMALL_BATCH else {}),
            "metric": "val_missing_rmse",
            "seed": 0,
            "time_budget": "30m",
            "initial": _initial(top, variance, hidden, solvable),
        },
    }


def _kl_weight(ratio: float, variance: float) -> float:
    """Returns the kl_weight for a noise variance of this share of the variance, rounded to 3 digits."""
    return float(f"{2 * ratio * variance:.3g}")


def _initial(top: int, variance: float, hidden: list[int], solvable: bool) -> list[dict[str, Any]]:
    linear = [(0.6, 0.015, "learned"), (0.5, 0.06, "fixed"), (0.35, 0.08, "learned"), (0.15, 0.4, "fixed")]
    points: list[dict[str, Any]] = [
        {
            **_latent(share, top),
            "model.layers": 0,
            "model.noise": noise,
            "train.kl_weight": _kl_weight(ratio, variance),
            "train.weight_decay": 0.01,
        }
        for share, ratio, noise in linear
        if solvable
    ]
    networks = [
        {
            **_latent(share, top),
            "model.layers": layers,
            "model.hidden": width,
            "model.activation": "relu",
            "model.skip": layers == 1,
            "model.noise": "fixed",
            "model.posterior": "learned",
            "train.kl_weight": _kl_weight(0.1, variance),
            "train.net_lr": 3e-3,
            "train.latent_lr": 0.1,
            "train.weight_decay": 0.03,
            "infer.lr": 0.15,
        }
        for share, layers, width in [(0.5, 1, hidden[0]), (0.75, 2, hidden[1])]
    ]
    return [*points, *networks]


def _latent(share: float, top: int) -> dict[str, Any]:
    """Returns the number of latents that is this share of the columns, under its key; empty if not searched."""
    return {"model.latent": max(min(2, top), round(share * top))} if top > 1 else {}


def to_text(header: str, name: str, data: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a search file as YAML with comments after its keys.

    Args:
        header: First lines, without comment signs.
        name: Name of the search.
        data: The section ``data``.
        space: The other sections.
    """
    lines = [f"# {line}" for line in header.splitlines()]
    lines.append(f"name: {_flow(name)}")
    for section, values in {"data": data, **space}.items():
        lines.append(f"{section}:")
        for key, value in values.items():
            comment = COMMENTS.get(f"{section}.{key}")
            remark = f"  # {comment}" if comment else ""
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines.append(f"  {key}:{remark}")
                lines += [f"    - {_flow(item)}" for item in value]
            else:
                lines.append(f"  {key}: {_flow(value)}{remark}")
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    """Returns a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
