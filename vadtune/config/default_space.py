"""The space to search on data nobody has tuned for, from the little that has to be known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

_MOST_LATENT = 128
_NOISE = (0.003, 1.5)  # variance of the noise, in units of that of the data
_STEPS = 2_500
_EPOCHS = (100, 800)
_SMALL_TABLE = 400  # train rows
_SMALL_BATCH = 64
_LARGE_TABLE = 10_000
_MOST_SOLVED = 10**10  # train rows · columns · latents², what an iteration of a solved decoder costs

COMMENTS = {
    "model.latent": "up to the number of columns",
    "model.layers": "hidden layers; 0 is a linear decoder, which is solved: probabilistic PCA, factor analysis",
    "model.skip": "a linear map beside the hidden layers",
    "model.noise": "one noise variance, or one of each column",
    "train.epochs": "so many that networks take enough steps; a solved decoder settles much sooner",
    "train.kl_weight": "twice the noise variance: .003 to 1.5 of the variance of the data",
    "train.net_lr": "a solved decoder has no learning rates",
    "search.grace_epochs": "of few rows a ninth of the epochs says little of how a network will end",
    "search.initial": "some linear decoders and two networks, whatever the sampler would try first",
}
"""Dotted key -> what a written file says beside it."""


def default_space(rows: int, columns: int, variance: float, missing_ratio: float) -> dict[str, dict[str, Any]]:
    """Returns the sections model, train, infer and search of a search file.

    Linear and nonlinear decoders are searched side by side: where little is known of each row, or where a table is
    nearly linear, probabilistic PCA and factor analysis are hard to beat, and they are solved in a moment. A skip
    leaves to the hidden layers only what is not linear, and a noise variance of each column lets those nobody can
    predict weigh less.

    - ``latent`` goes up to the columns: with a prior that is searched, wide latents do no harm, and images gain by
      them. A linear decoder of many latents on a large table takes long, since an iteration costs
      O(rows · columns · latent²): beyond that all decoders have hidden layers.
    - ``kl_weight`` is twice the variance of the noise, and what noise there is goes by the data: it is searched from
      .003 to 1.5 of the variance of the observed cells, in the units models train in.
    - ``weight_decay`` is searched from next to none to strong, since either end wins on some table.
    - ``epochs`` gives networks some 2,500 steps, and the posteriors of rows, which move once an epoch, at least 100.
      Small tables have smaller batches, and learning rates up to twice as high.
    - ``grace_epochs`` is a third of the epochs on small tables: a ninth of them says little there of how a network will
      end (a rank correlation of .68 on breast_cancer), and time is no matter.
    - ``hidden`` is wider where more cells were observed that could fill it.
    - ``search.initial`` makes sure of linear decoders with little and much noise before the sampler turns away from
      them, and of a smaller and a larger network.

    Args:
        rows: Train rows.
        columns: Columns.
        variance: Mean variance of the columns over observed train cells, in the scaler's units; about 1 where they are
            standardised.
        missing_ratio: Share of the train cells that are missing.
    """
    variance = max(variance, 1e-12)
    top = min(_MOST_LATENT, columns)
    solvable = rows * columns * top**2 <= _MOST_SOLVED
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
            **({"grace_epochs": epochs // 3} if batch == _SMALL_BATCH else {}),
            "metric": "val_missing_rmse",
            "seed": 0,
            "time_budget": "30m",
            "initial": _initial(top, variance, hidden, solvable),
        },
    }


def _kl_weight(ratio: float, variance: float) -> float:
    """Returns the kl_weight of noise of this share of the variance, rounded to what a person would write."""
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
    """Returns a share of the columns as a number of latents, where that is searched."""
    return {"model.latent": max(min(2, top), round(share * top))} if top > 1 else {}


def to_text(header: str, name: str, data: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the YAML of a search file with comments beside its keys.

    Args:
        header: Lines to begin with, without comment signs.
        name: Of the search.
        data: The data section.
        space: The other sections.
    """
    lines = [f"# {line}" for line in header.splitlines()]
    lines.append(f"name: {_flow(name)}")
    for section, values in {"data": data, **space}.items():
        lines.append(f"{section}:")
        for key, value in values.items():
            comment = COMMENTS.get(f"{section}.{key}")
            beside = f"  # {comment}" if comment else ""
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines.append(f"  {key}:{beside}")
                lines += [f"    - {_flow(item)}" for item in value]
            else:
                lines.append(f"  {key}: {_flow(value)}{beside}")
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    """Returns a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
