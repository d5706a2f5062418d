"""Trial configurations: all sections of a search file, without domains."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import field_validator

from vadtune.config.sections import InferConfig, ModelConfig, TrainConfig
from vadtune.core.schema import Section
from vadtune.data import AnyDataConfig

REFITS = ("none", "train", "train+validation", "all-observed")
"""The rows that exported models are refitted on; all-observed includes the observed cells of the test rows."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_OF_GRADIENTS = (
    *(("train", name) for name in ("batch_size", "net_lr", "latent_lr", "optimiser", "schedule")),
    *(("infer", name) for name in ("steps", "lr", "start")),
)


class TrialConfig(Section):
    """A trial configuration: a search file with every domain replaced by a value."""

    name: str
    data: AnyDataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("takes letters, digits, '.', '_' and '-', starting with a letter or digit")
        if name == "Default":
            raise ValueError("is the name of MLflow's default experiment; choose another")
        return name

    def to_dict(self) -> dict[str, Any]:
        """Returns the sections as plain values, without parameters that do not apply to this configuration."""
        values = self.model_dump()
        if self.model.layers == 0:
            for name in ("hidden", "activation", "layer_norm", "dropout", "skip"):
                del values["model"][name]
        if self.model.posterior != "fixed":
            del values["model"]["log_var"]
        if self.model.family == "vae":
            del values["train"]["latent_lr"], values["train"]["latent_init"], values["infer"]["start"]
        if self.infer.kl_weight is None:
            del values["infer"]["kl_weight"]
        if self.model.closed_form:
            for section, name in _OF_GRADIENTS:
                del values[section][name]
        return values

    def to_yaml(self) -> str:
        """Returns the configuration as YAML, which ``vadtune train`` accepts; it has every parameter that applies."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Returns ``to_dict`` under dotted keys, such as ``model.latent``."""
        return flatten(self.to_dict())


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Converts nested mappings to one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Converts a mapping with dotted keys to nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested
