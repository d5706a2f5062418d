"""Reads YAML files strictly, and applies ``key.path=value`` overrides."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vadtune.core.errors import ConfigError

_MAX_BYTES = 2**20


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Raises:
        ConfigError: It cannot be read, is too large or is not valid YAML.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: a search file has at most {_MAX_BYTES} bytes, got {path.stat().st_size}")
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing search file") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {text}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: needs sections (name, data, model, ...), got {type(tree).__name__}")
    return tree


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML loader that also refuses duplicate keys and aliases.

    A few lines of aliases can expand to more than fits into memory, or contain themselves.
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


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies ``key.path=value`` texts to nested mappings, in place, and returns them.

    Raises:
        ConfigError: An override has another form, or its value is not valid YAML.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"an override has the form key.path=value, got '{override}'")
        try:
            value = yaml.load(text, Loader=_StrictLoader)
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
