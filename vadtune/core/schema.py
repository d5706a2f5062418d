"""Base class and field types of the sections of a search file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from vadtune.core.errors import unknown_name


class Section(BaseModel):
    """Base of all sections: immutable, typed strictly, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SparseSection(Section):
    """Section that is written without the options that are None."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


Model = TypeVar("Model", bound=Section)


def by_tag(tag: str, *models: type[Model]) -> dict[str, type[Model]]:
    """Returns the models of a discriminated union by the names that their field ``tag``, a Literal, may have."""
    return {name: model for model in models for name in get_args(model.model_fields[tag].annotation)}


def as_number(value: object) -> object:
    """Converts a string that is a number, and returns anything else unchanged: YAML 1.1 reads ``1e-3`` as a string.

    Digits of other alphabets, ``1_000``, ``inf`` and ``nan`` stay strings.
    """
    if not isinstance(value, str) or not _NUMERIC.fullmatch(value):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


_NUMERIC = re.compile(r"\s*[-+]?[0-9.][0-9.eE+-]*\s*")
_MOST_COUNT = 10**9


def one_of(kind: str, valid: tuple[str, ...]) -> BeforeValidator:
    """Returns a validator that accepts only the names in ``valid``; error messages call the field ``kind``."""

    def check(value: object) -> object:
        if value not in valid:
            raise ValueError(unknown_name(kind, value, valid))
        return value

    return BeforeValidator(check)


def word_or_count(word: str, things: str) -> AfterValidator:
    """Returns the validator of a field that takes ``word`` or a whole number, from 1, of ``things``."""

    def check(value: object) -> object:
        number = as_number(value)
        if value != word and (
            isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _MOST_COUNT
        ):
            raise ValueError(f"takes '{word}' or a number of {things} from 1")
        return number

    return AfterValidator(check)


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("takes a number")
    return as_number(value)


def _text(value: object) -> object:
    # A column may be named 2019 and a missing cell be written -99.
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _absolute(path: str) -> str:
    # At once: trials run in working directories of their own, and exported configurations are read from anywhere.
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise ValueError("starts with the home of a user who is not known here; write the whole path") from error


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Text = Annotated[str, BeforeValidator(_text)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
