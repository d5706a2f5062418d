"""Converts what pydantic found in a section into messages: path, rule broken, value received."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import islice

from pydantic import BaseModel, ValidationError

from vadtune.config.domains import DOMAINS
from vadtune.config.sections import InferConfig, ModelConfig, SearchConfig, TrainConfig
from vadtune.core.errors import unknown_name
from vadtune.core.text import quoted
from vadtune.data import MECHANISMS, SOURCES, MissingConfig

_MAX_SHOWN = 200  # characters of a value
_MOST_MESSAGES = 20  # of a section
_SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "infer": InferConfig,
    "search": SearchConfig,
    "data.missing": MissingConfig,
}
_UNIONS: dict[str, tuple[str, Mapping[str, type[BaseModel]]]] = {
    "data": ("source", SOURCES),
    "missing": ("mechanism", MECHANISMS),
    "train_missing": ("mechanism", MECHANISMS),
}
"""Key of a discriminated union -> the key that decides, and the section for each of its values."""

Decided = tuple[str, str] | None
"""The deciding key of a union and its value; None for a section that is no member of a union."""


def problems_of(model: type[BaseModel], values: object, section: str = "") -> list[str]:
    """Validates the values of a section and returns one message per broken rule."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return list(messages(error, model, section))
    return []


def messages(error: ValidationError, model: type[BaseModel], section: str = "") -> Iterator[str]:
    """Yields one message per problem that pydantic found in the values of ``model``, whose key is ``section``."""
    for item in islice(error.errors(include_url=False), _MOST_MESSAGES):
        keys, owner, union = _locate(model, item["loc"])
        last = keys[-1] if keys else section
        path, value = ".".join([section, *keys] if section else keys), item["input"]
        match item["type"]:
            case "extra_forbidden":
                yield f"{path}: {_unknown_key(last, value, owner, union)}"
            case "missing":
                by = f" by {union[0]} '{union[1]}'; set {path}" if union else "; add it to the file"
                yield f"{path}: is required{by}"
            case "union_tag_invalid":
                key, registry = _UNIONS[last]
                yield f"{path}.{key}: {unknown_name(key, item['ctx']['tag'], registry)}"
            case "union_tag_not_found" if isinstance(value, dict):
                yield f"{path}.{_UNIONS[last][0]}: is required; add it to the file"
            case "model_type" | "dict_type" | "model_attributes_type" | "union_tag_not_found":
                yield f"{path}: takes a section with keys of its own, got {_shown(value)}"
            case "value_error":
                message = str(item["ctx"]["error"])
                repeated = repr(value) in message or f"'{value}'" in message
                yield f"{path}: {message}{'' if repeated else f', got {_shown(value)}'}"
            case _ if isinstance(value, dict):
                yield f"{path}: {unknown_name('domain', next(iter(value), ''), DOMAINS)}"
            case _:
                yield f"{path}: {item['msg'].replace('Input should be', 'must be')}, got {_shown(value)}"


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel], Decided]:
    """Returns the keys of a location, the section that its last key belongs to, and the union that decided it.

    Pydantic puts the deciding value of a union behind the union's key: ``data.iris.holdout`` for ``data.holdout``.
    """
    keys: list[str] = []
    owner, inner = model, model  # of the last key, and of the next one
    decided: Decided = None
    inner_decided: Decided = None
    union = None
    for part in map(str, location):
        if union:
            inner, inner_decided, union = union[1][part], (union[0], part), None
            continue
        keys.append(part)
        owner, decided = inner, inner_decided
        field = owner.model_fields.get(part)
        if field and part in _UNIONS:
            union = _UNIONS[part]
        elif field and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner, inner_decided = field.annotation, None
    return keys, owner, decided


def _unknown_key(key: str, value: object, owner: type[BaseModel], union: Decided) -> str:
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        return unknown_name("domain", next(iter(value)), DOMAINS)
    if union:
        others = [name for name, model in dict(_UNIONS.values())[union[0]].items() if key in model.model_fields]
        if others:
            names = ", ".join(sorted(others))
            return f"is an option of {names}, not of {union[0]} '{union[1]}'; leave it out, got {_shown(value)}"
    if places := _places(key, owner):
        return f"unknown key {quoted(key)}: did you mean {' or '.join(places)}?"
    return unknown_name("key", key, owner.model_fields)


def _places(key: str, owner: type[BaseModel]) -> list[str]:
    """Returns the dotted keys of other sections that an unknown key of ``owner`` may stand for."""
    homes: dict[str, list[str]] = {}
    for section, model in _SECTIONS.items():
        for name in () if issubclass(owner, model) else model.model_fields:
            homes.setdefault(name, []).append(f"{section}.{name}")
    known = list(owner.model_fields)
    near = difflib.get_close_matches(key, [*known, *homes], n=1)
    return homes[near[0]] if near and near[0] not in known else []


def _shown(value: object) -> str:
    """Returns a value as messages show it, shortened if it is long."""
    if isinstance(value, (dict, list)) and len(value) > _MAX_SHOWN:
        return f"{len(value)} values"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
