"""Domains of a search file: the values that a parameter may take, and the conditions under which it applies.

    latent: {choice: [4, 8, 16]}
    hidden: {choice: [128, 256], when: {layers: ">0"}}

To add a kind of domain: a parser here, a line in DOMAINS, and how Optuna draws from it in search/algorithms/space.py.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from vadtune.core.schema import as_number

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


_MOST_STEPS = 10**9
_MOST_WHOLE, _MOST_REAL = 2**63, 1e300  # what samplers can draw
_MOST_SHOWN = 10


@dataclass(frozen=True)
class Condition:
    """A condition under which a parameter applies: another parameter has certain values.

    Attributes:
        key: Dotted path of the other parameter.
        symbol: ``in``, or a comparison operator.
        operand: The value that the other parameter is compared with; a tuple of values for ``in``.
    """

    key: str
    symbol: str
    operand: Any

    @classmethod
    def parse(cls, key: str, test: object) -> Condition:
        """Parses ``{layers: ">0"}``, ``{posterior: fixed}`` or ``{layers: [1, 2]}``.

        Raises:
            ValueError: A comparison has no operand, or one that is not a number; or a list is empty.
        """
        if isinstance(test, list):
            if not test:
                raise ValueError(f"a condition needs at least one value of {key}, got an empty list")
            return cls(key, "in", tuple(test))
        if isinstance(test, str):
            for symbol in _OPERATORS:
                if test.startswith(symbol):
                    operand = as_number(test.removeprefix(symbol).strip())
                    ordered = symbol not in ("==", "!=")
                    if operand == "" or (ordered and not isinstance(operand, (int, float))):
                        raise ValueError(f"a comparison needs a number, such as '>0', got '{test}'")
                    return cls(key, symbol, operand)
        return cls(key, "in", (test,))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition holds; False if the other parameter does not apply."""
        if self.key not in values:
            return False
        if self.symbol == "in":
            return values[self.key] in self.operand
        try:
            return _OPERATORS[self.symbol](values[self.key], self.operand)
        except TypeError:
            return False

    @property
    def compares_numbers(self) -> bool:
        """Whether it holds for numbers only, since it asks which is larger."""
        return self.symbol in ("<", "<=", ">", ">=")

    @property
    def operands(self) -> tuple[Any, ...]:
        """The values that the other parameter is compared with."""
        return tuple(self.operand) if self.symbol == "in" else (self.operand,)


@dataclass(frozen=True)
class Domain(ABC):
    """A set of values. The parameter applies only if all conditions in ``when`` hold."""

    kind: str
    when: tuple[Condition, ...]

    @abstractmethod
    def probes(self) -> list[Any]:
        """Returns values that break a rule of the parameter if any value of the domain does: ends or all choices."""

    def count(self) -> int | None:
        """Returns the number of values, or None if they are infinitely many."""
        return None

    def finite_values(self) -> list[Any] | None:
        """Returns all values in order, or None if they are infinitely many; see ``count`` first."""
        return None

    @abstractmethod
    def contains(self, value: object) -> bool:
        """Whether the domain includes ``value``."""


@dataclass(frozen=True)
class Choice(Domain):
    """One of the listed values: ``choice``, or ``grid`` for the sampler that tries every combination."""

    values: tuple[Any, ...]

    def probes(self) -> list[Any]:
        """See Domain."""
        return list(self.values)

    finite_values = probes

    def count(self) -> int | None:
        """See Domain."""
        return len(self.values)

    def contains(self, value: object) -> bool:
        """See Domain; True is not 1."""
        return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values)


@dataclass(frozen=True)
class Range(Domain):
    """A number from ``low`` to ``high``, both included: ``uniform``, ``loguniform``, ``int`` or ``logint``."""

    low: Any
    high: Any

    @property
    def log(self) -> bool:
        """Whether every factor of two is equally likely."""
        return self.kind.startswith("log")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers belong to it."""
        return self.kind.endswith("int")

    def probes(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.high]

    def count(self) -> int | None:
        """See Domain."""
        return self.high - self.low + 1 if self.whole else None

    def finite_values(self) -> list[Any] | None:
        """See Domain."""
        return list(range(self.low, self.high + 1)) if self.whole else None

    def contains(self, value: object) -> bool:
        """See Domain."""
        return _is_number(value, int if self.whole else (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True)
class Steps(Domain):
    """A multiple of ``step`` above ``low``, up to ``high``: ``quniform``."""

    low: Any
    high: Any
    step: Any

    def probes(self) -> list[Any]:
        """See Domain."""
        return [self._value(0), self._value(self.count() - 1)]

    def count(self) -> int:
        """See Domain."""
        return int((self.high - self.low) / self.step + 1e-9) + 1

    def finite_values(self) -> list[Any] | None:
        """See Domain."""
        return [self._value(index) for index in range(self.count())]

    def contains(self, value: object) -> bool:
        """See Domain."""
        if not _is_number(value, (int, float)) or not self.low <= value <= self.high:
            return False
        return bool(value == self._value(round((value - self.low) / self.step)))

    def _value(self, index: int) -> Any:
        # Rounded, so that files and tables do not show 0.30000000000000004.
        value = round(self.low + index * self.step, 12)
        return int(value) if isinstance(self.low, int) and isinstance(self.step, int) else value


def _is_number(value: object, kinds: type | tuple[type, ...]) -> TypeGuard[int | float]:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _choice(kind: str, values: Sequence[Any], when: tuple[Condition, ...]) -> Domain:
    if not values:
        raise ValueError("needs at least one value, got an empty list")
    numbers = tuple(as_number(value) for value in values)
    if any(not isinstance(value, (str, int, float, bool)) for value in numbers):
        raise ValueError(f"takes plain values, got {_listed(values)}")
    if len({repr(value) for value in numbers}) != len(numbers):
        raise ValueError(f"lists each value once, got {_listed(values)}")
    return Choice(kind, when, numbers)


def _range(kind: str, values: Sequence[Any], when: tuple[Condition, ...]) -> Domain:
    low, high = _ends(_numbers(values, 2, "[low, high]"))
    domain = Range(kind, when, low, high)
    if domain.whole and not (isinstance(low, int) and isinstance(high, int)):
        raise ValueError(f"needs whole numbers, got [{low}, {high}]")
    if domain.log and low <= 0:
        raise ValueError(f"needs low {'>= 1' if domain.whole else '> 0'}, for logarithms, got [{low}, {high}]")
    return domain


def _steps(kind: str, values: Sequence[Any], when: tuple[Condition, ...]) -> Domain:
    *ends, step = _numbers(values, 3, "[low, high, step]")
    low, high = _ends(ends)
    if step <= 0 or step > high - low:
        raise ValueError(f"needs a step above 0 and at most high - low, got {step} for [{low}, {high}]")
    if (high - low) / step > _MOST_STEPS:
        raise ValueError(f"has at most {_MOST_STEPS} values, got a step of {step} for [{low}, {high}]; use uniform")
    return Steps(kind, when, low, high, step)


def _ends(numbers: list[Any]) -> list[Any]:
    if numbers[0] >= numbers[1]:
        raise ValueError(f"needs low < high, got {numbers}")
    return numbers


DOMAINS: dict[str, Callable[[str, Sequence[Any], tuple[Condition, ...]], Domain]] = {
    "choice": _choice,
    "int": _range,
    "uniform": _range,
    "loguniform": _range,
    "logint": _range,
    "quniform": _steps,
    "grid": _choice,
}
"""Kind of domain -> its parser, which raises ValueError if the list of values breaks a rule of the kind."""


def is_domain(node: object) -> bool:
    """Whether a node of a search file is meant as a domain: a mapping with a kind of domain or ``when`` as key."""
    return isinstance(node, dict) and any(key in DOMAINS or key == "when" for key in node)


def parse_domain(node: Mapping[str, Any], section: str) -> Domain:
    """Parses a domain such as ``{choice: [128, 256], when: {layers: ">0"}}``.

    Args:
        node: The mapping.
        section: Section of parameters that conditions name without a dot.

    Raises:
        ValueError: It breaks a rule; the message states the rule and the value received.
    """
    kinds = [key for key in node if key in DOMAINS]
    others = [key for key in node if key not in DOMAINS and key != "when"]
    if len(kinds) != 1 or others:
        got = ", ".join(map(str, list(node)[:_MOST_SHOWN]))
        raise ValueError(f"a domain has one kind ({', '.join(DOMAINS)}) and optionally 'when', got {got}")
    (kind,) = kinds
    if not isinstance(node[kind], list):
        raise ValueError(f"{kind} takes a list, got {node[kind]!r}")
    tests = node.get("when", {})
    if not isinstance(tests, dict):
        raise ValueError(f"when takes a mapping such as {{layers: '>0'}}, got {tests!r}")
    paths = {name: name if "." in str(name) else f"{section}.{name}" for name in tests}
    when = tuple(Condition.parse(path, tests[name]) for name, path in paths.items())
    try:
        return DOMAINS[kind](kind, node[kind], when)
    except ValueError as error:
        raise ValueError(f"{kind} {error}") from error


def _numbers(values: Sequence[Any], count: int, form: str) -> list[Any]:
    numbers = [number for number in map(as_number, values) if _is_number(number, (int, float))]
    if not len(numbers) == len(values) == count:
        raise ValueError(f"takes {form}, got {_listed(values)}")
    if not all(abs(n) < (_MOST_WHOLE if isinstance(n, int) else _MOST_REAL) for n in numbers):
        raise ValueError(f"takes finite numbers below {_MOST_REAL:g} (whole ones 2**63), got {_listed(values)}")
    return numbers


def _listed(values: Sequence[Any]) -> str:
    more = f"{len(values) - _MOST_SHOWN} more" if len(values) > _MOST_SHOWN else ""
    return f"[{', '.join([*map(repr, values[:_MOST_SHOWN]), *filter(None, [more])])}]"
