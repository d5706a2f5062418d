"""Shared helpers: small configurations and data that train in a fraction of a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from vadtune.config import TrialConfig
from vadtune.data import IncompleteDataset, load_dataset

if TYPE_CHECKING:
    from tests.finished_search import FinishedSearch


# Examples take longer while other tests run, and their time says nothing about what they check.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use the shared local Ray, so that `make test-fast` never starts one."""
    for item in items:
        if "ray_here" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(pytestconfig: pytest.Config) -> None:
    """What the user's cache holds changes nothing, here and in processes that tests start; kernels compile once."""
    os.environ["XDG_CACHE_HOME"] = str(pytestconfig.cache.mkdir("user_cache"))


def trial_config(**sections: dict[str, Any]) -> TrialConfig:
    """Returns a small iris configuration; keyword arguments replace values of its sections."""
    values: dict[str, Any] = {
        "name": "tiny",
        "data": {"source": "iris", "missing": {"ratio": 0.3}},
        "model": {"latent": 2, "hidden": 8, "layers": 1},
        "train": {"epochs": 4, "batch_size": 32},
        "infer": {"steps": 10},
    }
    for section, replacement in sections.items():
        values[section] = {**values[section], **replacement}
    return TrialConfig.model_validate(values)


@pytest.fixture(scope="session")
def iris() -> IncompleteDataset:
    return load_dataset(trial_config().data)


@pytest.fixture(scope="session")
def search(tmp_path_factory: pytest.TempPathFactory, iris: IncompleteDataset) -> FinishedSearch:
    """A finished search in an MLflow store of its own; shared, so tests may add to it but change nothing."""
    from tests.finished_search import finished_search  # it imports this module

    return finished_search(tmp_path_factory.mktemp("finished"), iris)


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One local Ray for all searches of this process: started and stopped as a search would."""
    from vadtune.search.driver.ray_start import local_ray

    with local_ray():
        yield
