"""What surrounds the package: the Makefile, workflows, metadata and the Dockerfile agree with each other."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

import vadtune
from vadtune.search.adaptation import VERSIONS

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    "name", [*(f".github/workflows/{path.name}" for path in WORKFLOWS), ".ci/run", "CONTRIBUTING.md"]
)
def test_make_targets_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"(?:run: |^|`|\d+ )make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= TARGETS


def test_every_job_has_steps_and_a_runner() -> None:
    assert {path.stem for path in WORKFLOWS} == {"ci", "newest", "release"}
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            assert job["runs-on"]
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_the_tested_pythons_are_those_of_the_classifiers() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    assert matrix["python"] == [
        line.removeprefix("Programming Language :: Python :: ")
        for line in project()["classifiers"]
        if line.startswith(prefix)
    ]


def test_the_lowest_versions_are_the_lower_ends_of_the_ranges() -> None:
    extras = project()["optional-dependencies"]
    requirements = [*project()["dependencies"], *extras["images"], *extras["hdf5"]]
    ranges = dict(re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?>=([\d.]+),<[\d.]+", line).groups() for line in requirements)  # type: ignore[union-attr]
    lines = (ROOT / ".github/lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(lowest) == set(ranges)
    assert all(f"{lowest[name]}.".startswith(f"{end}.") for name, end in ranges.items())


def test_messages_name_the_range_of_ray() -> None:
    extras = project()["optional-dependencies"]
    assert {f"ray[tune]{VERSIONS}", f"ray[default]{VERSIONS}"} <= {*project()["dependencies"], *extras["cluster"]}


def test_the_version_is_written_in_one_place_and_repeated_truly() -> None:
    assert "version" in project()["dynamic"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == vadtune.__version__
    assert f"vadtune:{vadtune.__version__}" in (ROOT / "Dockerfile").read_text()
    assert f"vadtune:{vadtune.__version__}" in (ROOT / "clusters/kuberay-rayjob.yaml").read_text()


def test_the_search_files_are_part_of_the_package() -> None:
    packaged = {path.name for path in resources.files("vadtune.search_spaces").iterdir() if path.name.endswith(".yaml")}
    assert packaged == {path.name for path in (ROOT / "search_spaces").glob("*.yaml")}


def test_the_image_runs_as_a_user_and_copies_what_exists() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER 1000" in lines
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            assert all((ROOT / source).exists() for source in line.split()[1:-1])
        if line.startswith("FROM "):
            assert re.match(r"FROM python:\d+\.\d+-\S+", line)
