"""Search files: reading one, overriding its values, and reporting all of its problems at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from vadtune.config.domains import DOMAINS, Choice, Domain, Grid, is_domain, parse_domain
from vadtune.config.schema import DataConfig, SearchConfig, Section, TrialConfig, flatten, unflatten
from vadtune.core.errors import ConfigError, unknown_name

_SEARCHED = ("model", "train", "infer")
_NEVER_SEARCHED = ("train.epochs", "train.seed")  # a budget, and what all configurations share to be comparable
_DEFAULT_SAMPLES = 64
_MAX_BYTES = 2**20
_LONGEST_SHOWN = 200


@dataclass(frozen=True)
class SearchFile:
    """A search: fixed values, domains of the searched ones, and how to search.

    Attributes:
        name: Of the search, and of its MLflow experiment.
        data: The data section.
        search: The search section, ``samples`` filled in.
        values: The fixed parameters a file gives, under dotted keys.
        domains: Dotted key -> domain, in an order in which conditions only look back.
        tree: The file as nested mappings, overrides applied.
    """

    name: str
    data: DataConfig
    search: SearchConfig
    values: dict[str, Any]
    domains: dict[str, Domain]
    tree: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the nested mappings alone, so that a resumed search does not depend on how classes are laid out."""
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
            raise ConfigError(list(_problems(error, TrialConfig))) from error

    def choices(self, key: str) -> list[Any]:
        """Returns the values that a parameter of named choices may take; the only one where it is not searched."""
        domain = self.domains.get(key)
        return [self.trial_config({}).flat()[key]] if domain is None else list(domain.finite_values() or ())

    def active(self, sample: Mapping[str, Any], key: str) -> bool:
        """Whether a searched parameter exists, given the values of those before it (dotted keys)."""
        known = {**self._fixed, **sample}
        return all(condition.holds(known) for condition in self.domains[key].when)

    def grid(self) -> list[dict[str, Any]]:
        """Returns every combination of existing parameters once, for domains that are finite.

        Raises:
            ConfigError: A domain is a continuum.
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
        """Returns the YAML of the search, overrides applied."""
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
        overrides: ``key.path=value`` texts that replace what the file says.

    Raises:
        ConfigError: With every problem of the file.
    """
    return parse_search(_override(_read(Path(path)), overrides))


def load_trial(path: str | Path, overrides: Sequence[str] = ()) -> TrialConfig:
    """Reads a trial configuration: a search file without domains, its search section optional.

    Raises:
        ConfigError: With every problem of the file; also when it has domains.
    """
    search = load_search(path, overrides)
    if search.domains:
        keys = ", ".join(search.domains)
        raise ConfigError(f"{path}: one value each is needed, got domains for {keys}; run `vadtune search {path}`")
    return search.trial_config({})


def parse_trial(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> TrialConfig:
    """Checks a trial configuration given as nested mappings.

    Raises:
        ConfigError: With every problem of it; also when it has domains.
    """
    search = parse_search(_override(dict(tree), overrides))
    if search.domains:
        raise ConfigError(f"one value each is needed, got domains for {', '.join(search.domains)}; name values")
    return search.trial_config({})


def parse_search(tree: Mapping[str, Any]) -> SearchFile:
    """Checks a search given as nested mappings.

    Raises:
        ConfigError: With every problem of it.
    """
    problems = [
        f"{key}: takes sections within sections, got a key with a dot; write `{key.replace('.', ': {')}: ...`"
        for key in _dotted_keys(tree)
    ]
    if problems:
        raise ConfigError(problems)
    domains, problems = _domains(tree)
    values = {key: value for key, value in _leaves(tree) if key not in domains and not is_domain(value)}
    given = unflatten({key: value for key, value in values.items() if not key.startswith("search.")})
    given.pop("search", None)
    problems += _check(TrialConfig, given)
    search_values = tree.get("search", {}) or {}
    problems += [f"search.{problem}" for problem in _check(SearchConfig, search_values)]
    for key, domain in domains.items():
        problems += _check_domain(key, domain)
        problems += _check_conditions(key, domain)
    if problems:
        raise ConfigError(problems)

    search = SearchConfig.model_validate(search_values)
    if search.samples is None and search.sampler != "grid":
        search = search.model_copy(update={"samples": _DEFAULT_SAMPLES})
    trial = TrialConfig.model_validate(given)
    # As validated: its paths are absolute, wherever the trials will run and the search be resumed.
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


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: a search file has at most {_MAX_BYTES} bytes, got {path.stat().st_size}")
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing search file") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {text}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: needs sections (name, data, model, ...), got {type(tree).__name__}")
    return tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a silent replacement.

    Aliases are refused: a few lines of them can stand for more than a memory holds, or for themselves.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            raise yaml.composer.ComposerError(None, None, f"an alias, '*{event.anchor}' (line {line}); repeat it", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key_node, _ in node.value:
            if keys.count(key_node.value) > 1:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"key '{key_node.value}' twice (line {line})", None)
        return super().construct_mapping(node, deep)


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"an override has the form key.path=value, got '{override}'")
        try:
            value = yaml.load(text, Loader=_UniqueKeyLoader)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
            raise ConfigError(f"{path}: the value must be YAML, got '{text}'") from error
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = value
        _forget(tree, path)
    return tree


def _forget(tree: dict[str, Any], path: str) -> None:
    """Drops what an override is about from the configurations to try first: it has the last word on it.

    Its path may be a parameter's, a section's, or a part of a domain's.
    """

    def told(key: object) -> bool:
        return f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.")

    search = tree.get("search")
    initial = search.get("initial") if isinstance(search, dict) else None
    if isinstance(initial, list):
        search["initial"] = [  # type: ignore[index]  # a mapping, or it had no list in it
            {key: value for key, value in point.items() if not told(key)} if isinstance(point, dict) else point
            for point in initial
        ]


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and what is no section: values, domains, empty mappings."""
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
    """Finds and reads the domains; returns them with the problems met."""
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


def _check(section: type[BaseModel], values: object) -> list[str]:
    try:
        section.model_validate(values)
    except ValidationError as error:
        return list(_problems(error, section))
    return []


def _check_domain(key: str, domain: Domain) -> list[str]:
    """Checks that every value the domain reaches obeys the parameter's rule."""
    section, _, name = key.partition(".")
    model = TrialConfig.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, Section)
    problems = [problem for probe in domain.probes() for problem in _check(model, unflatten({name: probe}))]
    return [f"{section}.{problem}" for problem in dict.fromkeys(problems)]


def _check_conditions(key: str, domain: Domain) -> list[str]:
    known = _parameters()
    return [
        f"{key}: its condition names an {unknown_name('parameter', condition.key, known)}"
        for condition in domain.when
        if condition.key not in known
    ]


def _parameters() -> list[str]:
    return [
        f"{section}.{name}"
        for section in _SEARCHED
        for name in TrialConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    ]


def _ordered(domains: dict[str, Domain]) -> dict[str, Domain]:
    """Sorts domains so that conditions only look back; those in the file's order otherwise.

    Raises:
        ConfigError: Conditions go in a circle.
    """
    ordered: dict[str, Domain] = {}
    while len(ordered) < len(domains):
        waiting = {key: domain for key, domain in domains.items() if key not in ordered}
        ready = [k for k, d in waiting.items() if not any(condition.key in waiting for condition in d.when)]
        if not ready:
            raise ConfigError(f"{', '.join(waiting)}: their conditions go in a circle; remove one of them")
        ordered[ready[0]] = domains[ready[0]]
    return ordered


def _check_search(file: SearchFile) -> list[str]:
    """Checks the rules that join the search section with the rest."""
    search, problems = file.search, []
    if search.grace_epochs is not None and search.grace_epochs > file.epochs:
        problems.append(f"search.grace_epochs: must be at most train.epochs ({file.epochs}), got {search.grace_epochs}")
    for key, domain in file.domains.items():
        if search.sampler == "grid" and domain.finite_values() is None:
            problems.append(f"{key}: the sampler 'grid' needs finite domains, got {domain.kind}; use choice")
        if search.sampler != "grid" and isinstance(domain, Grid):
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


def _problems(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """Turns what pydantic found into messages: path, rule, value."""
    for item in error.errors():
        *parents, last = item["loc"] or ("",)
        path = ".".join(map(str, item["loc"]))
        match item["type"]:
            case "extra_forbidden":
                if _is_misspelt_domain(item["input"]):
                    yield f"{path}: {unknown_name('domain', next(iter(item['input'])), DOMAINS)}"
                else:
                    yield f"{path}: {unknown_name('key', last, _fields_at(root, parents))}"
            case "missing":
                yield f"{path}: is required; add it to the file"
            case "value_error":
                yield f"{path}: {item['ctx']['error']}{_got(item)}"
            case "model_type" | "dict_type":
                yield f"{path}: takes a section with keys of its own, got {_shown(item['input'])}"
            case _ if isinstance(item["input"], dict):
                yield f"{path}: {unknown_name('domain', next(iter(item['input']), ''), DOMAINS)}"
            case _:
                yield f"{path}: {item['msg'].replace('Input should be', 'must be')}, got {_shown(item['input'])}"


def _is_misspelt_domain(node: object) -> bool:
    """Whether a node looks like a domain of an unknown kind: one key with a list behind it."""
    return isinstance(node, dict) and len(node) == 1 and isinstance(next(iter(node.values())), list)


def _shown(value: object) -> str:
    """Returns a value as a message shows it, its beginning where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _got(item: Any) -> str:
    message = str(item["ctx"]["error"])
    return "" if repr(item["input"]) in message or f"'{item['input']}'" in message else f", got {_shown(item['input'])}"


def _fields_at(root: type[BaseModel], parents: Sequence[int | str]) -> list[str]:
    model: Any = root
    for parent in parents:
        annotation = model.model_fields[parent].annotation
        model = next(iter(get_args(annotation)), annotation)  # an optional section is a union with None
    return list(model.model_fields)
