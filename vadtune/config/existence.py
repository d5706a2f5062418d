"""Which parameters a configuration has: hidden units only with hidden layers, learning rates only with gradients.

Trial configurations are written by these rules, and searches draw by them, in addition to the conditions of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A rule that decides whether a parameter exists.

    Attributes:
        keys: Dotted keys of the parameters that decide.
        holds: Returns whether the parameter exists, given all parameters under dotted keys, defaults included.
    """

    keys: tuple[str, ...]
    holds: Callable[[Mapping[str, Any]], bool]


def is_closed_form(family: str, layers: int, head: str, posterior: str) -> bool:
    """Whether a model is trained and inferred in closed form: a linear decoder with learned posteriors."""
    return family == "vad" and layers == 0 and head == "plain" and posterior == "learned"


_DECIDE_FORM = ("model.family", "model.layers", "model.head", "model.posterior")
_WITH_LAYERS = Rule(("model.layers",), lambda values: values["model.layers"] > 0)
_WITH_GRADIENTS = Rule(_DECIDE_FORM, lambda values: not is_closed_form(*(values[key] for key in _DECIDE_FORM)))
_WITHOUT_ENCODER = Rule(("model.family",), lambda values: values["model.family"] != "vae")

RULES: dict[str, tuple[Rule, ...]] = {
    **{f"model.{name}": (_WITH_LAYERS,) for name in ("hidden", "activation", "layer_norm", "dropout", "skip")},
    "model.log_var": (Rule(("model.posterior",), lambda values: values["model.posterior"] == "fixed"),),
    **{f"train.{name}": (_WITH_GRADIENTS,) for name in ("batch_size", "net_lr", "optimiser", "schedule")},
    "train.latent_lr": (_WITHOUT_ENCODER, _WITH_GRADIENTS),
    "train.latent_init": (_WITHOUT_ENCODER,),
    **{f"infer.{name}": (_WITH_GRADIENTS,) for name in ("steps", "lr")},
    "infer.start": (_WITHOUT_ENCODER, _WITH_GRADIENTS),
}
"""Dotted key -> the rules that must all hold for the parameter to exist; a parameter without rules always exists."""


def absent(values: Mapping[str, Any]) -> list[str]:
    """Returns the dotted keys of the parameters that do not exist, given all parameters, defaults included."""
    return [key for key, rules in RULES.items() if not all(rule.holds(values) for rule in rules)]


def deciding(key: str) -> set[str]:
    """Returns the dotted keys of the parameters that decide by the rules whether a parameter exists."""
    return {other for rule in RULES.get(key, ()) for other in rule.keys}
