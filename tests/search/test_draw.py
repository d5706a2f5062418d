from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.search.test_run import tiny
from vadtune.cli import main
from vadtune.config import load_trial, parse_search
from vadtune.search.algorithms.space import draw_configurations

GRID = Path(__file__).parent.parent.parent / "search_spaces" / "digits_grid.yaml"


def search(**section: Any) -> Any:
    return parse_search(tiny(**section))


def test_a_random_sample_repeats_by_seed_and_has_no_point_twice() -> None:
    points = draw_configurations(search(samples=30), None)
    assert len(points) == 30
    assert points == draw_configurations(search(samples=30), None)
    assert points != draw_configurations(search(samples=30, seed=1), None)
    assert len({repr(sorted(point.items())) for point in points}) == 30
    assert all(("model.hidden" in point) == (point["model.layers"] > 0) for point in points)


def test_listed_configurations_come_first() -> None:
    first = {"model.latent": 2, "model.layers": 0, "train.kl_weight": "2.5e-1"}  # as YAML reads numbers, now and then
    points = draw_configurations(search(initial=[first]), 3)
    assert points[0] == {**first, "train.kl_weight": 0.25}
    assert len(points) == 3


def test_a_grid_is_whole_or_a_random_part_in_order() -> None:
    tree = tiny(samples=None, sampler="grid")
    tree["train"]["kl_weight"] = 0.1
    whole = draw_configurations(parse_search(tree), None)
    assert len(whole) == 9
    part = draw_configurations(parse_search(tree), 4)
    assert [point for point in whole if point in part] == part
    assert len(part) == 4
    assert draw_configurations(parse_search(tree), 100) == whole


def test_a_small_space_gives_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = tiny()
    tree["train"]["kl_weight"] = 0.1
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    assert main(["configs", str(tmp_path / "tiny.yaml"), "--samples", "40", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 9
    assert "only 9 configurations, fewer than --samples 40" in caplog.text


def test_every_file_is_a_configuration_that_train_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    out = tmp_path / "new" / "configs"
    assert main(["configs", str(tmp_path / "tiny.yaml"), "train.epochs=2", "--samples", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(out / f"config_{number}.yaml") for number in range(3)]
    assert {load_trial(path).train.epochs for path in printed} == {2}
    assert main(["train", printed[1]]) == 0
    assert "val_missing_rmse" in capsys.readouterr().out


def test_the_shipped_grid_is_written_whole(tmp_path: Path) -> None:
    assert main(["configs", str(GRID), "--out", str(tmp_path / "grid")]) == 0
    configs = [load_trial(path) for path in (tmp_path / "grid").iterdir()]
    assert len(configs) == 108
    assert len({config.to_yaml() for config in configs}) == 108
