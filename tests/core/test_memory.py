"""Free memory, by the files that Linux and containers write."""

from __future__ import annotations

from pathlib import Path

import pytest

from vadtune.core import memory
from vadtune.core.errors import DataError
from vadtune.core.memory import available_memory, check_memory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the files of the system, with 4 GB free on the machine and no container."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
    return tmp_path


def test_the_machine_and_the_container_both_limit(system: Path) -> None:
    assert available_memory() == 4000000 * 1024
    (system / "memory.max").write_text("max\n")
    (system / "memory.current").write_text("500\n")
    assert available_memory() == 4000000 * 1024, "no limit"
    (system / "memory.max").write_text("1000\n")
    (system / "memory.stat").write_text("anon 400\ninactive_file 100\n")
    assert available_memory() == 600, "what the system can free counts as free"


def test_unknown_memory_passes_every_check(system: Path) -> None:
    (system / "meminfo").unlink()
    assert available_memory() is None
    check_memory(1e18, "this", "do not")


def test_too_little_memory_is_reported_with_figures(system: Path) -> None:
    check_memory(4.0e9, "reading", "read less")
    with pytest.raises(DataError, match=r"^reading needs about 31 GB of memory, 4\.1 GB are free; read less$"):
        check_memory(31e9, "reading", "read less")
