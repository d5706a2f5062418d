"""What happens where Ray or Tune has changed: optional adaptations are left out, protective ones refuse to start."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from ray.tune.execution.tune_controller import TuneController

from tests.search.test_run import Finished, tiny
from vadtune.cli import main
from vadtune.core.errors import SearchError
from vadtune.search import ray_compat
from vadtune.search.adaptation import Adaptation, warn_once
from vadtune.search.ray_compat import ADAPTATIONS, check_effect, start_on_loopback

OPTIONAL = [name for name, adaptation in ADAPTATIONS.items() if not adaptation.protective]
PROTECTIVE = [name for name, adaptation in ADAPTATIONS.items() if adaptation.protective]


@pytest.fixture(autouse=True)
def _forget_warnings() -> None:
    warn_once.cache_clear()


def gone(adaptation: Adaptation) -> Adaptation:
    """Returns the adaptation for a Ray in which its target has another name."""
    return dataclasses.replace(adaptation, target=f"{adaptation.target}_of_another_version")


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_an_adaptation_fits_the_ray_that_is_installed(name: str) -> None:
    assert ADAPTATIONS[name].problem() == ""


@pytest.mark.ray
def test_a_search_runs_without_any_optional_adaptation(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in OPTIONAL:
        monkeypatch.setitem(ADAPTATIONS, name, gone(ADAPTATIONS[name]))
    monkeypatch.setattr(ray_compat, "call_optional", lambda *args: None)
    found = Finished(tmp_path, tiny(samples=4))
    assert len(found.trials) == 4
    assert found.outcome.failures == {}
    of_its_start = ("no_api_server", "no_autoscaler", "no_log_monitor", "quick_node_lookup")
    used = [name for name in OPTIONAL if name not in of_its_start]
    assert caplog.text.count("of_another_version does not exist") == len(used)


def other_signature(self: TuneController) -> bool:
    return False


def test_a_changed_optional_adaptation_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(TuneController, "_maybe_reuse_cached_actor", other_signature)
    for _ in range(2):
        with ADAPTATIONS["keep_starting_actors"].applied(other_signature):
            assert TuneController._maybe_reuse_cached_actor is other_signature
    (record,) = caplog.records
    assert "_maybe_reuse_cached_actor must take ('trial',), got ()" in record.getMessage()
    assert "without it trials start one after another" in record.getMessage()


def test_a_missing_attribute_of_ray_is_found_before_it_is_used() -> None:
    adaptation = dataclasses.replace(ADAPTATIONS["keep_starting_actors"], attributes=("_no_such_attribute",))
    assert adaptation.problem() == "TuneController has no _no_such_attribute"


@pytest.mark.parametrize("name", PROTECTIVE)
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_a_search_without_protection_is_refused(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vadtune.search.driver.ray_start.start_on_loopback", lambda folder, **options: None)
    method = ADAPTATIONS[name].target.rpartition(".")[2]
    if how == "gone":
        monkeypatch.delattr(TuneController, method)
    else:
        monkeypatch.setattr(TuneController, method, lambda self, other: None)
    Path("search.yaml").write_text(yaml.safe_dump(tiny(samples=2)))
    assert main(["search", "search.yaml"]) == 2
    error = capsys.readouterr().err
    assert method in error
    assert "install 'ray>=2.58,<2.61'" in error
    assert not Path("mlflow.db").exists(), "nothing was started"


@pytest.mark.ray
def test_a_search_whose_state_tune_does_not_save_is_ended(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TuneController, "checkpoint", lambda self, force=False, wait=False: None)
    with pytest.raises(SearchError, match=r"must call .*save_to_dir and did not; .* a killed search could not be"):
        Finished(tmp_path, tiny(samples=2))


def test_a_retry_that_nothing_decided_on_is_refused() -> None:
    with pytest.raises(SearchError, match=r"must call .*_process_trial_failure and did not"):
        check_effect("bounded_retries")


LISTENS = """
import socket
import ray
from vadtune.core.errors import SearchError
from vadtune.search.driver.ray_start import local_ray

def init(**options):
    global server
    server = socket.create_server(("0.0.0.0", 0))

ray.init = init
try:
    with local_ray():
        print("started")
except SearchError as error:
    print(error, ray.is_initialized())
"""


@pytest.mark.ray
def test_a_ray_that_listens_beyond_loopback_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", LISTENS], env=environment, capture_output=True, text=True, check=True)
    assert "must listen on loopback addresses only, got 0.0.0.0; install 'ray>=" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_a_ray_without_the_option_for_loopback_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(options)}")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SearchError, match=r"cannot listen on 127\.0\.0\.1 only; install 'ray>="):
        start_on_loopback(tmp_path)
