"""The shipped cluster files, checked without a cloud."""

from __future__ import annotations

import copy
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LAUNCHER = ["cluster.yaml", "clusters/on_premises.yaml"]
HEALTH = ("period_ms", "timeout_ms", "failure_threshold", "initial_delay_ms")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def is_supported(package: str, version: str) -> bool:
    """Returns whether a version of a dependency is in the range of pyproject.toml."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = [requirement for requirement in map(Requirement, lines) if requirement.name == package]
    return found.specifier.contains(version)


def ray_of(name: str) -> str:
    """Returns the version of Ray that the nodes of a launcher file install."""
    (version,) = re.findall(r"'ray\[default\]==([\d.]+)'", "\n".join(read(name)["setup_commands"]))
    return str(version)


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_up_accepts_the_file(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.util import prepare_config, validate_config

    file = read(name)
    assert re.fullmatch(r"[a-z-]+", file["cluster_name"])
    prepared = prepare_config(copy.deepcopy(file))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert file["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_node_gets_the_same_versions_the_token_and_the_tracking_uri(name: str) -> None:
    file = read(name)
    assert is_supported("ray", ray_of(name))
    assert set(file["file_mounts"]) == {"~/.ray/auth_token", "~/vadtune.env"}
    for commands in (file["head_start_ray_commands"], file["worker_start_ray_commands"]):
        start = commands[-1]
        assert "RAY_AUTH_MODE=token" in start
        assert ". ~/vadtune.env" in start
    head = file["head_start_ray_commands"][-1]
    assert all(f"RAY_health_check_{setting}=" in head for setting in HEALTH)
    assert "--dashboard-host=127.0.0.1" in head


def test_the_cloud_cluster_grows_with_spot_gpus_under_a_head_without() -> None:
    types = read("cluster.yaml")["available_node_types"]
    worker = types["gpu_worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 4)
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert worker["node_config"]["InstanceType"].startswith("g")
    assert not types["head"]["node_config"]["InstanceType"].startswith(("g", "p"))
    assert types["head"]["resources"]["CPU"] == 0


def test_the_kuberay_job_ends_its_cluster() -> None:
    job = read("clusters/kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypoint"].startswith("vadtune search ")
    cluster = spec["rayClusterSpec"]
    assert {cluster["rayVersion"]} == {ray_of(name) for name in LAUNCHER}
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    (workers,) = cluster["workerGroupSpecs"]
    worker = workers["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" in worker["resources"]["limits"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    for container in (head, worker):
        names = {entry["name"] for entry in container["env"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI"} <= names
    assert {f"RAY_health_check_{setting}" for setting in HEALTH} <= {entry["name"] for entry in head["env"]}


def test_the_tracking_server_is_bound_to_this_machine() -> None:
    services = read("deploy/compose.yaml")["services"]
    assert services["mlflow"]["ports"] == ["${VADTUNE_BIND:-127.0.0.1}:5000:5000"]
    assert "ports" not in services["database"]
    image, _, tag = services["mlflow"]["image"].partition(":")
    assert image == "ghcr.io/mlflow/mlflow"
    assert is_supported("mlflow", tag.removeprefix("v").removesuffix("-full"))
    assert services["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


@pytest.mark.parametrize("name", [*LAUNCHER, "clusters/kuberay-rayjob.yaml", "deploy/compose.yaml"])
def test_no_file_holds_a_secret(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"(AKIA[0-9A-Z]{16}|[0-9a-f]{32,}|BEGIN .*PRIVATE KEY)", text)
