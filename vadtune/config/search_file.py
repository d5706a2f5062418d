"""Search files: fixed values, domains of the searched parameters, and how to search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vadtune.config.domains import Choice, Condition, Domain, is_domain, parse_domain
from vadtune.config.existence import RULES, deciding
from vadtune.config.messages import messages, problems_of
from vadtune.config.moved_data import with_moved_data
from vadtune.config.sections import InferConfig, ModelConfig, SearchConfig, TrainConfig, TrialConfig, flatten, unflatten
from vadtune.config.yaml_file import apply_overrides, read_yaml
from vadtune.core.errors import ConfigError, unknown_name
from vadtune.core.text import quoted
from vadtune.data import DataConfig

_SEARCHED: dict[str, type[BaseModel]] = {"model": ModelConfig, "train": TrainConfig, "infer": InferConfig}
_NEVER_SEARCHED = ("train.epochs", "train.seed")  # the budget, and what must be common to all configurations
DEFAULT_SAMPLES = 64
"""Trials of a search that names neither ``samples`` nor a budget."""
_MOST_POINTS = 100_000  # of a grid


@dataclass(frozen=True)
class SearchFile:
    """A search: fixed values, domains of the searched parameters, and how to search.

    Attributes:
        name: Name of the search, and of its MLflow experiment.
        data: The section ``data``.
        search: The section ``search``; ``samples`` is filled in unless a budget or the grid ends the search.
        values: The fixed parameters that the file sets, under dotted keys.
        domains: Dotted key -> domain, sorted so that conditions refer to earlier parameters only.
        tree: The file as nested mappings, with overrides applied and absolute paths.
    """

    name: str
    data: DataConfig
    search: SearchConfig
    values: dict[str, Any]
    domains: dict[str, Domain]
    tree: dict[str, Any]

    def __reduce__(self) -> tuple[Callable[..., SearchFile], tuple[dict[str, Any]]]:
        # Other versions of vadtune resume searches: the tree outlives the layout of classes.
        return parse_search, (self.tree,)

    @property
    def epochs(self) -> int:
        """The full budget of a trial."""
        return self.trial_config({}).train.epochs

    def trial_config(self, sample: Mapping[str, Any]) -> TrialConfig:
        """Returns the configuration with the searched parameters replaced by ``sample`` (dotted keys).

        Raises:
            ConfigError: A value breaks the parameter's rule.
        """
        try:
            return TrialConfig.model_validate(unflatten({**self.values, **sample}))
        except ValidationError as error:
            raise ConfigError(list(messages(error, TrialConfig))) from error

    def choices(self, key: str) -> list[Any]:
        """Returns the values that a parameter with a finite domain may take; the only one if it is not searched."""
        domain = self.domains.get(key)
        return [self.trial_config({}).flat()[key]] if domain is None else list(domain.finite_values() or ())

    def active(self, sample: Mapping[str, Any], key: str) -> bool:
        """Whether a parameter exists, given the values of earlier searched ones (dotted keys)."""
        return self.existence(sample, key) is True

    def existence(self, sample: Mapping[str, Any], key: str) -> bool | None:
        """Returns whether a parameter exists by its conditions and the rules, given values of searched parameters.

        Args:
            sample: Values of searched parameters (dotted keys).
            key: The parameter.

        Returns:
            None where it depends on searched parameters that ``sample`` lacks.
        """
        known = {**self._defaults, **sample}

        def settled(other: str) -> bool:
            """Whether the value of another parameter is known: given, not searched, or the default of an absent one."""
            return other in sample or other not in self.domains or self.existence(sample, other) is False

        answers: list[bool | None] = []
        for condition in self.domains[key].when if key in self.domains else ():
            exists = self.existence(sample, condition.key)
            if exists and settled(condition.key):
                answers.append(condition.holds(known))
            else:
                answers.append(False if exists is False else None)
        for rule in RULES.get(key, ()):
            answers.append(rule.holds(known) if all(map(settled, rule.keys)) else None)
        return False if False in answers else None if None in answers else True

    def grid(self) -> list[dict[str, Any]]:
        """Returns every combination of searched parameters that exist, each once.

        Raises:
            ConfigError: A domain is not finite, or there are more than 100,000 combinations.
        """
        points: list[dict[str, Any]] = [{}]
        for key, domain in self.domains.items():
            count = domain.count()
            if count is None:
                raise ConfigError(f"{key}: the sampler 'grid' needs finite domains, got {domain.kind}; use choice")
            exists = [self.active(point, key) for point in points]
            total = sum(count if there else 1 for there in exists)
            if total > _MOST_POINTS:
                raise ConfigError(
                    f"search.sampler: a grid has at most {_MOST_POINTS:,} points, got {total:,} up to {key}; "
                    "use fewer values, or the sampler 'random'"
                )
            values = domain.finite_values() or []
            points = [
                {**point, key: value} if there else point
                for point, there in zip(points, exists, strict=True)
                for value in (values if there else [None])
            ]
        return points

    def to_yaml(self) -> str:
        """Returns the search as YAML, with overrides applied."""
        return yaml.safe_dump(self.tree, sort_keys=False)

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """All parameters; those that are searched have their default."""
        return flatten(self.trial_config({}).model_dump())


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> SearchFile:
    """Reads a search file.

    Args:
        path: The YAML file.
        overrides: ``key.path=value`` texts that replace values of the file.

    Raises:
        ConfigError: With every problem of the file.
    """
    return parse_search(apply_overrides(read_yaml(Path(path)), overrides), strict=not overrides)


def load_recorded_search(path: Path) -> SearchFile:
    """Reads the search file of a run folder, also of one that an earlier version wrote, which checked less.

    Data that was moved with it is found.

    Raises:
        ConfigError: With every problem of the file.
    """
    return parse_search(with_moved_data(read_yaml(path), path))


def load_trial(path: str | Path, overrides: Sequence[str] = ()) -> TrialConfig:
    """Reads a trial configuration: a search file without domains, its search section optional.

    Data that was moved with it is found.

    Raises:
        ConfigError: With every problem of the file; also if it has domains.
    """
    tree = with_moved_data(read_yaml(Path(path)), Path(path))
    search = parse_search(apply_overrides(tree, overrides), strict=not overrides)
    if search.domains:
        keys = ", ".join(search.domains)
        raise ConfigError(f"{path}: one value each is needed, got domains for {keys}; run `vadtune search {path}`")
    return search.trial_config({})


def parse_trial(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> TrialConfig:
    """Parses and checks a trial configuration given as nested mappings.

    Raises:
        ConfigError: With every problem; also if it has domains.
    """
    search = parse_search(apply_overrides(dict(tree), overrides))
    if search.domains:
        raise ConfigError(f"one value each is needed, got domains for {', '.join(search.domains)}; name values")
    return search.trial_config({})


def parse_search(tree: Mapping[str, Any], *, strict: bool = False) -> SearchFile:
    """Parses and checks a search given as nested mappings.

    Args:
        tree: The search.
        strict: Whether a parameter in ``search.initial`` that does not exist there is an error; else it is removed, as
            where values were overridden.

    Raises:
        ConfigError: With every problem.
    """
    problems = [
        f"{key}: takes sections within sections, got a key with a dot; write `{key.replace('.', ': {')}: ...`"
        for key in _dotted_keys(tree)
    ]
    if problems:
        raise ConfigError(problems)
    domains, problems = _domains(tree)
    values = {key: value for key, value in _leaves(tree) if key not in domains and not is_domain(value)}
    fixed = unflatten({key: value for key, value in values.items() if not key.startswith("search.")})
    fixed.pop("search", None)
    problems += problems_of(TrialConfig, fixed)
    search_values = tree.get("search", {}) or {}
    problems += problems_of(SearchConfig, search_values, "search")
    for key, domain in domains.items():
        problems += _check_domain(key, domain)
    if problems:
        raise ConfigError(problems)

    search = SearchConfig.model_validate(search_values)
    if search.samples is None and search.sampler != "grid" and search.time_budget is None and search.gpu_hours is None:
        search = search.model_copy(update={"samples": DEFAULT_SAMPLES})
    trial = TrialConfig.model_validate(fixed)
    # As validated: with absolute paths, since trials run and searches are resumed in other folders.
    data = trial.data.model_dump(exclude_unset=True)
    flat = {
        **{key: value for key, value in values.items() if not key.startswith(("search", "data.")) and value != {}},
        **flatten({"data": data}),
    }
    file = SearchFile(trial.name, trial.data, search, flat, _ordered(domains), {**tree, "data": data})
    if not strict:
        file = _without_absent(file)
    problems = _check_search(file)
    if problems:
        raise ConfigError(problems)
    return file


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and everything that is not a section: values, domains, empty mappings."""
    for key, value in node.items():
        if isinstance(value, dict) and value and not is_domain(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dotted_keys(node: Mapping[Any, Any]) -> Iterator[str]:
    for key, value in node.items():
        if "." in str(key):
            yield str(key)
        elif isinstance(value, dict) and not is_domain(value):
            yield from _dotted_keys(value)


def _domains(tree: Mapping[str, Any]) -> tuple[dict[str, Domain], list[str]]:
    """Returns the domains under dotted keys, and the problems found in them."""
    domains: dict[str, Domain] = {}
    problems = []
    for key, node in _leaves({section: content for section, content in tree.items() if section != "search"}):
        if not is_domain(node):
            continue
        section = key.partition(".")[0]
        if section not in _SEARCHED or key in _NEVER_SEARCHED:
            allowed = f"{', '.join(_SEARCHED)}, except {' and '.join(_NEVER_SEARCHED)}"
            problems.append(f"{key}: takes a value, got a domain; domains are for parameters of {allowed}")
            continue
        try:
            domains[key] = parse_domain(node, section)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    return domains, problems


def _check_domain(key: str, domain: Domain) -> list[str]:
    """Returns the problems of a domain: values that break the parameter's rule, conditions on unknown parameters."""
    section, _, name = key.partition(".")
    problems = [
        problem
        for probe in domain.probes()
        for problem in problems_of(_SEARCHED[section], unflatten({name: probe}), section)
    ]
    problems += [problem for condition in domain.when for problem in _check_condition(key, condition)]
    return list(dict.fromkeys(problems))


def _check_condition(key: str, condition: Condition) -> list[str]:
    """Returns the problems of a condition: an unknown parameter, or values that this parameter cannot have."""
    known = [f"{section}.{name}" for section, model in _SEARCHED.items() for name in model.model_fields]
    if condition.key not in known:
        return [f"{key}: its condition names an {unknown_name('parameter', condition.key, known)}"]
    section, _, name = condition.key.partition(".")
    default = _SEARCHED[section].model_fields[name].default
    is_number = default is None or (isinstance(default, (int, float)) and not isinstance(default, bool))
    if condition.compares_numbers and not is_number:
        return [f"{key}: its condition compares {condition.key}, which is no number; name values, such as {default}"]
    problems = []
    for operand in condition.operands:
        if is_number and isinstance(operand, str):
            takes = "a number or a comparison such as '>0'"
            problems.append(f"{key}: its condition on {condition.key} takes {takes}, got the text {quoted(operand)}")
        elif not condition.compares_numbers:
            wrong = problems_of(_SEARCHED[section], {name: operand}, section)
            problems += [f"{key}: its condition names a value that cannot be: {problem}" for problem in wrong]
    return problems


def _without_absent(file: SearchFile) -> SearchFile:
    """Returns the search without the values of ``search.initial`` of parameters that do not exist there."""
    points = [
        {key: value for key, value in point.items() if file.existence(point, key) is not False}
        for point in file.search.initial
    ]
    if points == file.search.initial:
        return file
    search = file.search.model_copy(update={"initial": points})
    return replace(file, search=search, tree={**file.tree, "search": {**file.tree["search"], "initial": points}})


def _ordered(domains: dict[str, Domain]) -> dict[str, Domain]:
    """Sorts domains so that conditions refer to earlier parameters only; otherwise keeps the order of the file.

    Raises:
        ConfigError: Conditions form a cycle.
    """
    ordered: dict[str, Domain] = {}
    while len(ordered) < len(domains):
        waiting = {key: domain for key, domain in domains.items() if key not in ordered}
        needed = {k: deciding(k) | {condition.key for condition in d.when} for k, d in waiting.items()}
        ready = [key for key, others in needed.items() if others.isdisjoint(waiting)]
        if not ready:
            raise ConfigError(f"{', '.join(waiting)}: their conditions form a cycle; remove one of them")
        ordered[ready[0]] = domains[ready[0]]
    return ordered


def _check_search(file: SearchFile) -> list[str]:
    """Checks the rules that link the search section to the others."""
    search, problems = file.search, []
    if search.grace(file.epochs) > file.epochs:
        problems.append(f"search.grace_epochs: must be at most train.epochs ({file.epochs}), got {search.grace_epochs}")
    if search.scheduler == "hyperband" and (search.order == "logical" or search.concurrency is not None):
        problems.append("search.order: hyperband waits for whole brackets by itself, got order logical; leave it out")
    if search.order == "arrival" and search.concurrency is not None:
        problems.append("search.concurrency: belongs to search.order logical, got order arrival; leave one out")
    for key, domain in file.domains.items():
        if search.sampler == "grid" and domain.count() is None:
            problems.append(f"{key}: the sampler 'grid' needs finite domains, got {domain.kind}; use choice")
        if search.sampler != "grid" and domain.kind == "grid":
            problems.append(f"{key}: a grid needs search.sampler grid, got '{search.sampler}'; use choice")
        if search.sampler == "cmaes" and (domain.when or isinstance(domain, Choice)):
            what = "a condition" if domain.when else domain.kind
            problems.append(f"{key}: the sampler 'cmaes' takes unconditional numbers only, got {what}; use tpe")
    if search.sampler == "grid" and not problems:
        try:
            file.grid()
        except ConfigError as error:
            problems += error.problems
    for index, point in enumerate(search.initial):
        if search.sampler == "grid":
            problems.append(f"search.initial.{index}: the sampler 'grid' tries every point, got {point}; leave it out")
        for key, value in point.items():
            path = f"search.initial.{index}.{key}"
            if key not in file.domains:
                problems.append(f"{path}: {unknown_name('searched parameter', key, file.domains)}")
            elif not file.domains[key].contains(value):
                problems.append(f"{path}: must lie in its domain, got {value!r}")
            elif file.existence(point, key) is False:
                problems.append(f"{path}: does not exist with the other values there, got {value!r}; leave it out")
    return problems
