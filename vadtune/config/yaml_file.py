"""Reads YAML files strictly, and applies ``key.path=value`` overrides."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vadtune.core.errors import ConfigError
from vadtune.core.reading import SMALL_FILE, check_regular, read_bounded
from vadtune.core.text import one_line, quoted

_MOST_NODES, _MOST_DEPTH = 20_000, 50  # keys and values of a file, and levels of nesting
_SECTIONS = {"name", "data", "model", "train", "infer", "search"}
_QUOTED = re.compile(r"(?<=[ ,(])['\"].*['\"]")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Messages repeat nothing of a file that is no search file.

    Raises:
        ConfigError: It cannot be read, is too large or is not valid YAML.
    """
    try:
        if (size := check_regular(path)) > SMALL_FILE:
            raise ConfigError(f"{path}: a search file has at most {SMALL_FILE} bytes, got {size}; name a search file")
        content = read_bounded(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing search file") from error
    try:
        loader = _StrictLoader(content.decode())
        root = loader.get_single_node()
        got = {yaml.SequenceNode: "list", yaml.ScalarNode: "text"}.get(type(root), "none of them")
        if isinstance(root, yaml.MappingNode) and any(key.value in _SECTIONS for key, _ in root.value if _is_text(key)):
            return dict(loader.construct_document(root))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_reason(error)}") from error
    raise ConfigError(f"{path}: needs sections (name, data, model, ...), got {got}; name a search file")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML loader that also refuses duplicate keys, aliases, and more or deeper values than a search needs.

    A few lines of aliases can expand to more than fits into memory, or contain themselves.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ValueError(f"an alias{_line(mark)}; repeat what it stands for")
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MOST_NODES or self._depth > _MOST_DEPTH:
            what = f"at most {_MOST_NODES} keys and values in {_MOST_DEPTH} levels"
            raise ValueError(f"{what} expected, got more; name a search file")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if _is_text(key_node):
                if key_node.value in lines:
                    raise ValueError(f"key {quoted(key_node.value)} twice (line {lines[key_node.value]})")
                lines[key_node.value] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _reason(error: Exception) -> str:
    """Returns what is wrong and where, without the text around it that YAML's errors quote."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8 text"
    if isinstance(error, yaml.MarkedYAMLError):
        return f"{_QUOTED.sub('...', error.problem or 'it cannot be parsed')}{_line(error.problem_mark)}"
    if isinstance(error, yaml.YAMLError):
        return "it holds characters that YAML does not allow"
    return " ".join(str(error).split())


def _line(mark: Any) -> str:
    return "" if mark is None else f" (line {mark.line + 1})"


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies ``key.path=value`` texts to nested mappings, in place, and returns them.

    Raises:
        ConfigError: An override has another form, or its value is not valid YAML.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"an override has the form key.path=value, got {quoted(override)}")
        try:
            value = yaml.load(text, Loader=_StrictLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that does not exist
            raise ConfigError(f"{one_line(path, 100)}: the value must be YAML, got {quoted(text)}") from error
        *parents, last = path.split(".")
        if len(parents) > _MOST_DEPTH:
            raise ConfigError(f"an override names a key in at most {_MOST_DEPTH} sections, got {quoted(override)}")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = value
        _forget(tree, path)
    return tree


def _forget(tree: dict[str, Any], path: str) -> None:
    """Removes overridden parameters from the configurations of ``search.initial``, so that the override applies to all.

    The path may be that of a parameter, of a section, or of a part of a domain.
    """
    search = tree.get("search")
    initial = search.get("initial") if isinstance(search, dict) else None
    if not isinstance(search, dict) or not isinstance(initial, list):
        return

    def overridden(key: object) -> bool:
        return f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.")

    search["initial"] = [
        {key: value for key, value in point.items() if not overridden(key)} if isinstance(point, dict) else point
        for point in initial
    ]
