"""Search files: fixed values, domains of the searched parameters, and how to search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vadtune.config.domains import Choice, Domain, is_domain, parse_domain
from vadtune.config.messages import messages, problems_of
from vadtune.config.sections import InferConfig, ModelConfig, SearchConfig, TrainConfig, TrialConfig, flatten, unflatten
from vadtune.config.yaml_file import apply_overrides, read_yaml
from vadtune.core.errors import ConfigError, unknown_name
from vadtune.data import DataConfig

_SEARCHED: dict[str, type[BaseModel]] = {"model": ModelConfig, "train": TrainConfig, "infer": InferConfig}
_NEVER_SEARCHED = ("train.epochs", "train.seed")  # the budget, and what must be common to all configurations
_DEFAULT_SAMPLES = 64


@dataclass(frozen=True)
class SearchFile:
    """A search: fixed values, domains of the searched parameters, and how to search.

    Attributes:
        name: Name of the search, and of its MLflow experiment.
        data: The section ``data``.
        search: The section ``search``, with ``samples`` filled in.
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
        """Whether the conditions of a searched parameter hold, given the values of earlier ones (dotted keys)."""
        known = {**self._fixed, **sample}
        return all(condition.holds(known) for condition in self.domains[key].when)

    def grid(self) -> list[dict[str, Any]]:
        """Returns every combination of searched parameters whose conditions hold, each once.

        Raises:
            ConfigError: A domain is not finite.
        """
        points: list[dict[str, Any]] = [{}]
        for key, domain in self.domains.items():
            values = domain.finite_values()
            if values is None:
                raise ConfigError(f"{key}: the sampler 'grid' needs finite domains, got {domain.kind}; use choice")
            points = [
                {**point, key: value} if exists else point
                for point in points
                for exists in [self.active(point, key)]
                for value in (values if exists else [None])
            ]
        return points

    def to_yaml(self) -> str:
        """Returns the search as YAML, with overrides applied."""
        return yaml.safe_dump(self.tree, sort_keys=False)

    @property
    def _fixed(self) -> dict[str, Any]:
        """All parameters that are not searched, defaults included."""
        flat = flatten(self.trial_config({}).model_dump())
        return {key: value for key, value in flat.items() if key not in self.domains}


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> SearchFile:
    """Reads a search file.

    Args:
        path: The YAML file.
        overrides: ``key.path=value`` texts that replace values of the file.

    Raises:
        ConfigError: With every problem of the file.
    """
    return parse_search(apply_overrides(read_yaml(Path(path)), overrides))


def load_trial(path: str | Path, overrides: Sequence[str] = ()) -> TrialConfig:
    """Reads a trial configuration: a search file without domains, its search section optional.

    Raises:
        ConfigError: With every problem of the file; also if it has domains.
    """
    search = load_search(path, overrides)
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


def parse_search(tree: Mapping[str, Any]) -> SearchFile:
    """Parses and checks a search given as nested mappings.

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
    if search.samples is None and search.sampler != "grid":
        search = search.model_copy(update={"samples": _DEFAULT_SAMPLES})
    trial = TrialConfig.model_validate(fixed)
    # As validated: with absolute paths, since trials run and searches are resumed in other folders.
    data = trial.data.model_dump(exclude_unset=True)
    flat = {
        **{key: value for key, value in values.items() if not key.startswith(("search", "data.")) and value != {}},
        **flatten({"data": data}),
    }
    file = SearchFile(trial.name, trial.data, search, flat, _ordered(domains), {**tree, "data": data})
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
    known = [f"{section}.{name}" for section, model in _SEARCHED.items() for name in model.model_fields]
    problems += [
        f"{key}: its condition names an {unknown_name('parameter', condition.key, known)}"
        for condition in domain.when
        if condition.key not in known
    ]
    return list(dict.fromkeys(problems))


def _ordered(domains: dict[str, Domain]) -> dict[str, Domain]:
    """Sorts domains so that conditions refer to earlier parameters only; otherwise keeps the order of the file.

    Raises:
        ConfigError: Conditions form a cycle.
    """
    ordered: dict[str, Domain] = {}
    while len(ordered) < len(domains):
        waiting = {key: domain for key, domain in domains.items() if key not in ordered}
        ready = [k for k, d in waiting.items() if not any(condition.key in waiting for condition in d.when)]
        if not ready:
            raise ConfigError(f"{', '.join(waiting)}: their conditions form a cycle; remove one of them")
        ordered[ready[0]] = domains[ready[0]]
    return ordered


def _check_search(file: SearchFile) -> list[str]:
    """Checks the rules that link the search section to the others."""
    search, problems = file.search, []
    if search.grace_epochs is not None and search.grace_epochs > file.epochs:
        problems.append(f"search.grace_epochs: must be at most train.epochs ({file.epochs}), got {search.grace_epochs}")
    if search.order == "logical" and search.scheduler == "hyperband":
        problems.append("search.order: hyperband waits for whole brackets by itself, got logical; leave it out")
    if search.order == "arrival" and search.concurrency is not None:
        problems.append("search.concurrency: belongs to search.order logical, got order arrival; leave one out")
    for key, domain in file.domains.items():
        if search.sampler == "grid" and domain.finite_values() is None:
            problems.append(f"{key}: the sampler 'grid' needs finite domains, got {domain.kind}; use choice")
        if search.sampler != "grid" and domain.kind == "grid":
            problems.append(f"{key}: a grid needs search.sampler grid, got '{search.sampler}'; use choice")
        if search.sampler == "cmaes" and (domain.when or isinstance(domain, Choice)):
            what = "a condition" if domain.when else domain.kind
            problems.append(f"{key}: the sampler 'cmaes' takes unconditional numbers only, got {what}; use tpe")
    for index, point in enumerate(search.initial):
        if search.sampler == "grid":
            problems.append(f"search.initial.{index}: the sampler 'grid' tries every point, got {point}; leave it out")
        for key, value in point.items():
            path = f"search.initial.{index}.{key}"
            if key not in file.domains:
                problems.append(f"{path}: {unknown_name('searched parameter', key, file.domains)}")
            elif not file.domains[key].contains(value):
                problems.append(f"{path}: must lie in its domain, got {value!r}")
    return problems
