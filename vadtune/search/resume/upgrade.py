"""Upgrades the saved state of searches begun by version 0.1.0, whose pickles name modules that have moved since.

Ray Tune pickles searcher, scheduler and callbacks by reference to their classes. Version 0.1.0 pickled a search file
with all of its sections; here only its nested mappings are kept, from which a search file is parsed again.
"""

from __future__ import annotations

import importlib
import io
import pickle
import re
from typing import Any

from ray import cloudpickle

from vadtune.config import SearchFile

_MOVED = {
    "vadtune.search.space.suggest": "vadtune.search.algorithms.space.suggest",
    "vadtune.search.samplers.Searcher": "vadtune.search.algorithms.samplers.Searcher",
    "vadtune.search.schedulers.RaceOfNetworks": "vadtune.search.algorithms.schedulers.AshaSkippingClosedForm",
    "vadtune.search.callbacks.SearchCallback": "vadtune.search.driver.callbacks.SearchCallback",
    "vadtune.search.callbacks.WhenSpent": "vadtune.search.driver.callbacks.BudgetStopper",
    "vadtune.search.run._trial_folder": "vadtune.search.driver.run._trial_folder",
}
_SEARCH_FILE = "vadtune.search_file"
_SECTIONS = ("vadtune.config", "vadtune.domains")
OLD_NAMES = {module: set[str]() for module in _SECTIONS} | {_SEARCH_FILE: {"SearchFile"}}
"""What a state of version 0.1.0 may name beside what a state of today does: module -> names, empty for all of them."""
for _name in _MOVED:
    OLD_NAMES.setdefault(_name.rpartition(".")[0], set()).add(_name.rpartition(".")[2])
_HEX_PICKLE = re.compile(rb"(?<=\")80(?:[0-9a-f]{2})+")  # in JSON, as Ray Tune writes it
_OLD_MODULES = [name.rpartition(".")[0].encode() for name in (*_MOVED, f"{_SEARCH_FILE}.SearchFile")]


def upgrade_state(content: bytes) -> bytes:
    """Returns a state file of Ray Tune, a pickle or JSON with pickles in it, naming the modules of today."""
    if content[:1] == b"\x80":
        return _upgrade_pickle(content)
    return _HEX_PICKLE.sub(lambda match: _upgrade_pickle(bytes.fromhex(match[0].decode())).hex().encode(), content)


def _upgrade_pickle(content: bytes) -> bytes:
    if not any(module in content for module in _OLD_MODULES):
        return content
    upgraded: bytes = cloudpickle.dumps(_Unpickler(io.BytesIO(content)).load())
    return upgraded


class _Unpickler(pickle.Unpickler):
    """Loads the classes of version 0.1.0 from where they are today."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == _SEARCH_FILE:
            return _RecordedSearch
        if module_name in _SECTIONS:
            return _Discarded
        moved = _MOVED.get(f"{module_name}.{global_name}")
        if moved is None:
            return super().find_class(module_name, global_name)
        module, _, name = moved.rpartition(".")
        return getattr(importlib.import_module(module), name)


class _RecordedSearch(SearchFile):
    """A search file of version 0.1.0; pickled again as its nested mappings."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "tree", state["tree"])


class _Discarded:
    """A section or domain of version 0.1.0, which parsing the search file makes again."""

    def __new__(cls, *args: Any) -> _Discarded:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass
