"""Checks a saved state before anything loads it: its pickles may only name what the state of a search consists of.

Tune and Optuna save their state as pickles, and loading one imports and calls whatever it names. Here each is first
read without doing so: names stand for empty classes, and one that is not listed below ends the resume.
"""

from __future__ import annotations

import binascii
import io
import json
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from vadtune.core.errors import SearchError

_CALLED = {
    "collections.deque",
    "datetime.datetime",
    "functools.partial",
    *(f"numpy._core.{name}" for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")),
    "numpy.dtype",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "optuna.study._study_direction.StudyDirection",
    "optuna.trial._state.TrialState",
    "pyarrow._fs.FileSystem._from_uri",
    *(f"pyarrow._{kind}.{name}._reconstruct" for kind, name in (("s3fs", "S3FileSystem"), ("gcsfs", "GcsFileSystem"))),
    "vadtune.config.search_file.parse_search",
}
"""What a state may call: data types, and functions without effects."""
_NAMED = {
    "cmaes._cma.CMA",
    "numpy.ndarray",
    "numpy.random._mt19937.MT19937",
    *(f"optuna.distributions.{kind}Distribution" for kind in ("Categorical", "Float", "Int")),
    "optuna.pruners._nop.NopPruner",
    "optuna.samplers._cmaes.CmaEsSampler",
    "optuna.samplers._lazy_random_state.LazyRandomState",
    "optuna.samplers._random.RandomSampler",
    "optuna.samplers._tpe.parzen_estimator._ParzenEstimator",
    "optuna.samplers._tpe.parzen_estimator._ParzenEstimatorParameters",
    "optuna.samplers._tpe.sampler.TPESampler",
    *(f"optuna.samplers._tpe.sampler.default_{name}" for name in ("gamma", "weights")),
    "optuna.search_space.group_decomposed._GroupDecomposedSearchSpace",
    "optuna.search_space.group_decomposed._SearchSpaceGroup",
    "optuna.search_space.intersection.IntersectionSearchSpace",
    "optuna.storages._in_memory.InMemoryStorage",
    "optuna.storages._in_memory._StudyInfo",
    "optuna.study.study.Study",
    "optuna.trial._frozen.FrozenTrial",
    "optuna.trial._trial.Trial",
    "ray.train.SyncConfig",
    "ray.train._internal.checkpoint_manager._CheckpointManager",
    "ray.train._internal.session._TrainingResult",
    *(f"ray.train._internal.storage.{name}" for name in ("StorageContext", "_FilesystemSyncer", "_upload_to_fs_path")),
    *(f"ray.tune.{name}" for name in ("Checkpoint", "CheckpointConfig")),
    "ray.tune.execution.placement_groups.PlacementGroupFactory",
    "ray.tune.experiment.experiment.Experiment",
    "uuid.UUID",
    "vadtune.search.algorithms.samplers._End",
    "vadtune.search.algorithms.space.suggest",
    "vadtune.search.algorithms.trial_history.RecentTrials",
    "vadtune.search.driver.callbacks.BudgetStopper",
    "vadtune.search.driver.run._trial_folder",
}
"""What a state may name, as the class of an object or to keep a reference, but not call."""


class NotListedError(SearchError):
    """A pickle names something that no state of a search consists of."""


def check_state(content: bytes, more: Mapping[str, set[str]] | None = None) -> None:
    """Checks a state file of Ray Tune: a pickle, or JSON with pickles in its texts.

    Args:
        content: The file's bytes.
        more: Names allowed beside the listed ones: module -> names; an empty set for all of a module's.

    Raises:
        NotListedError: It names or calls something else.
    """
    try:
        tree = json.loads(content)
    except ValueError:
        check_pickle(content, more)
        return
    for text in _texts(tree):
        try:
            check_pickle(binascii.unhexlify(text), more)
        except ValueError:  # no hexadecimal digits
            continue


def check_pickle(content: bytes, more: Mapping[str, set[str]] | None = None) -> None:
    """Checks one pickle; arguments and errors as ``check_state``. What is no pickle passes: no loader executes it."""
    reader = _Reader(content, more or {})
    try:
        reader.load()
    except NotListedError:
        raise
    except Exception as error:
        if reader.named:
            raise NotListedError(f"cannot be followed after {reader.named}") from error


def _texts(tree: Any) -> Iterator[str]:
    """Yields all texts in nested lists and mappings, also in those that are JSON in a text."""
    match tree:
        case dict():
            for key, value in tree.items():
                yield from _texts(key)
                yield from _texts(value)
        case list():
            for value in tree:
                yield from _texts(value)
        case str() if tree[:1] in ("{", "["):
            try:
                inner = json.loads(tree)
            except ValueError:
                return
            yield from _texts(inner)
        case str():
            yield tree


class _Reader(pickle.Unpickler):
    """Reads a pickle with an empty class in place of everything it names."""

    def __init__(self, content: bytes, more: Mapping[str, set[str]]) -> None:
        super().__init__(io.BytesIO(content))
        self.named = ""
        self._more = more

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Returns the empty class that stands for a listed name."""
        name = f"{module_name}.{global_name}"
        allowed = self._more.get(module_name)
        if name not in _CALLED and name not in _NAMED and (allowed is None or (allowed and global_name not in allowed)):
            raise NotListedError(f"names {name}, which no search saves")
        self.named = name
        return type(global_name, (_Callable if name in _CALLED else _Empty,), {"name": name})


class _Empty:
    """Takes whatever a pickle does with an object, and does nothing; must not be called."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Empty:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotListedError(f"calls {self.name}, which no search does")

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """See list."""

    def extend(self, values: Any) -> None:
        """See list."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Callable(_Empty):
    """Stands for what a state may call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass
