from __future__ import annotations

from collections.abc import Iterator

import pytest

from vadtune.search.process import local_ray


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One local Ray for all searches of this process: started and stopped as a search would."""
    with local_ray():
        yield
