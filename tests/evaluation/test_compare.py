"""Comparisons: whole ones on a real Ray, what needs no search on results the tests write."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from vadtune.artifacts.model_folder import find_model_folders, load_model
from vadtune.cli import main
from vadtune.core.errors import ConfigError, ModelFolderError, SearchError
from vadtune.evaluation.compare import Cell, plan, run_comparison
from vadtune.evaluation.retest import run_retest
from vadtune.reports.comparison_figure import _curve_colours, _curves, comparison_plot

TREE: dict[str, Any] = {
    "name": "one",
    "data": {"source": "iris"},
    "model": {"latent": {"int": [1, 3]}, "hidden": 8},
    "train": {"epochs": 9, "net_lr": 1e-2},
    "infer": {"steps": 10},
    "search": {"samples": 3, "cpus_per_trial": 2},
}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for name, family in (("one", "vad"), ("two", "vae")):
        tree = {**TREE, "name": name, "model": {**TREE["model"], "family": family}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        paths.append(str(tmp_path / f"{name}.yaml"))
    return paths


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.ray
def test_each_file_is_searched_and_retested_at_each_ratio_and_nothing_is_done_twice(
    ray_here: None,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, uri = tmp_path / "out", f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = ["compare", *files, "--ratios", "0.3,0.6", "--seeds", "2", "--ensemble", "top:2", "--out", str(out)]
    command += ["--tracking-uri", uri]
    assert main(command) == 0
    header, one, two = capsys.readouterr().out.splitlines()
    assert header.split() == ["search", "trained_on", "0.3", "0.6"]
    rows = rows_of(out / "compare.csv")
    cells = [("one", "0.3"), ("one", "0.6"), ("two", "0.3"), ("two", "0.6")]
    assert [(row["search"], row["missing_ratio"]) for row in rows] == cells
    assert [row["family"] for row in rows] == ["vad", "vad", "vae", "vae"]
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert one.split()[-1] == f"{float(rows[1]['missing_rmse']):.4g}"
    assert two.split()[0] == "two"
    for row in rows:
        best = out / f"{row['search']}-r{row['missing_ratio']}/best"
        ratio = float(row["missing_ratio"])
        assert len(find_model_folders(best)) == 2
        assert load_model(find_model_folders(best)[0]).config.data.missing.ratio == ratio
        again = run_retest(best, [ratio], [0, 1], store_masks=False, baselines=[])
        assert float(row["missing_rmse"]) == pytest.approx(again.headline.mean("missing_rmse")[0])
        scores = again.headline.scores["missing_rmse"][0]
        assert float(row["missing_rmse_lowest"]) == pytest.approx(scores.min())
        assert float(row["missing_rmse_highest"]) == pytest.approx(scores.max())

    def forbidden(*args: Any, **options: Any) -> Any:
        raise AssertionError("done already")

    # The same command again does nothing; a cell that lost its result is retested, not searched.
    with monkeypatch.context() as patch:
        patch.setattr("vadtune.evaluation.compare.start_search", forbidden)
        patch.setattr("vadtune.evaluation.compare.export_best", forbidden)
        assert main(command) == 0
    before = (out / "compare.csv").read_bytes()
    (out / "two-r0.6/result.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("vadtune.evaluation.compare.start_search", forbidden)
        assert main(command) == 0
    assert (out / "compare.csv").read_bytes() == before

    # More masks: every cell is retested, none searched.
    with monkeypatch.context() as patch:
        patch.setattr("vadtune.evaluation.compare.start_search", forbidden)
        assert main([*command, "--seeds", "3"]) == 0
    assert {row["masks"] for row in rows_of(out / "compare.csv")} == {"3"}

    # Another file under the same name is no continuation.
    capsys.readouterr()
    assert main(["compare", "train.epochs=10", *command[1:]]) == 2
    assert "must hold this search, but holds one of another one file or other overrides" in capsys.readouterr().err

    # A search that left no snapshot is started again.
    shutil.rmtree(out / "one-r0.3/runs")
    (out / "one-r0.3/result.json").unlink()
    (out / "one-r0.3/runs/broken").mkdir(parents=True)
    assert main(command) == 0
    assert len(list((out / "one-r0.3/runs").glob("*/run.json"))) == 1


def cell(folder: Path, files: list[str], ratio: float = 0.3) -> Cell:
    (made,) = plan([Path(files[0])], [], [ratio], folder)
    return made


def test_an_interruption_ends_the_comparison_and_keeps_what_is_done(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = SimpleNamespace(run="one-r0.3-x", interrupted=True, failures={})
    monkeypatch.setattr("vadtune.evaluation.compare.start_search", lambda *args, **options: outcome)
    monkeypatch.setattr("vadtune.evaluation.compare.local_ray", contextlib.nullcontext)
    out = tmp_path / "out"
    assert main(["compare", *files, "--out", str(out), "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]) == 130
    assert capsys.readouterr().out == ""
    assert not (out / "compare.csv").exists()


def test_an_existing_search_is_resumed_and_its_failures_are_reported(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = SimpleNamespace(run="before", interrupted=False, failures={"trial-0001": "error: full disk"})
    monkeypatch.setattr("vadtune.evaluation.compare.resume_search", lambda *args, **options: outcome)
    monkeypatch.setattr("vadtune.evaluation.compare._retest", lambda cell, run, *args: {"run": run})
    monkeypatch.setattr("vadtune.evaluation.compare.local_ray", contextlib.nullcontext)
    made = cell(tmp_path, files)
    (made.folder / "runs/before").mkdir(parents=True)
    (made.folder / "runs/before/run.json").write_text("{}")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = run_comparison([made], ensemble="best", seeds=[0], uri=uri, progress=lambda line: None)
    assert done.rows == [{"run": "before"}]
    assert done.failures == {"one-r0.3 trial-0001": "error: full disk"}


def test_a_search_without_a_model_leaves_a_gap_and_the_others_go_on(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(cell: Cell, uri: str) -> tuple[str, dict[str, str], bool]:
        return cell.search.name, {}, False

    def retest(cell: Cell, *args: Any) -> dict[str, object]:
        if cell.ratio == 0.3:
            raise ModelFolderError("none has a checkpoint")
        return {"missing_ratio": cell.ratio}

    monkeypatch.setattr("vadtune.evaluation.compare._search", search)
    monkeypatch.setattr("vadtune.evaluation.compare._retest", retest)
    monkeypatch.setattr("vadtune.evaluation.compare.local_ray", contextlib.nullcontext)
    cells = plan([Path(files[0])], [], [0.3, 0.6], tmp_path / "out")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = run_comparison(cells, ensemble="best", seeds=[0], uri=uri, progress=lambda line: None)
    assert done.rows == [{"missing_ratio": 0.6}]
    assert done.failures == {"one-r0.3": "none has a checkpoint"}


def test_each_cell_has_its_name_ratio_and_overrides(files: list[str], tmp_path: Path) -> None:
    cells = plan([Path(path) for path in files], ["train.epochs=5"], [0.1, 0.35], tmp_path)
    assert [cell.search.name for cell in cells] == ["one-r0.1", "one-r0.35", "two-r0.1", "two-r0.35"]
    assert [cell.search.data.missing.ratio for cell in cells] == [0.1, 0.35] * 2
    assert {cell.search.epochs for cell in cells} == {5}
    assert [cell.family for cell in cells] == ["vad", "vad", "vae", "vae"]
    assert not any(cell.trained_on_complete for cell in cells)
    assert not any(tmp_path.glob("*-r*")), "planning writes nothing"


def test_two_files_of_one_name_are_refused(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need different names, got 'one' twice"):
        plan([Path(files[0]), Path(files[0])], [], [0.3], tmp_path)


def test_values_that_vary_make_a_line_each(files: list[str], tmp_path: Path) -> None:
    vary = ["model.family=vad,vae", "data.train_missing=null,none"]
    cells = plan([Path(files[0])], [], [0.3], tmp_path, vary)
    assert [(cell.name, cell.family, cell.trained_on_complete) for cell in cells] == [
        ("one-vad", "vad", False),
        ("one-vad-none", "vad", True),
        ("one-vae", "vae", False),
        ("one-vae-none", "vae", True),
    ]
    both = plan([Path(files[0])], [], [0.3], tmp_path, ["model.family=vad,vae+infer.steps=0"])
    assert [(cell.name, cell.family) for cell in both] == [("one-vad", "vad"), ("one-vae", "vae")]
    assert [cell.search.trial_config({}).infer.steps for cell in both] == [10, 0]
    for wrong in ("model.family", "model.family=", "=vad", "model.family=vad,,vae", "model.family=vad+0", "a=b+"):
        with pytest.raises(ConfigError, match="--vary: takes"):
            plan([Path(files[0])], [], [0.3], tmp_path, [wrong])


def test_a_damaged_result_is_named(files: list[str], tmp_path: Path) -> None:
    made = cell(tmp_path, files)
    made.folder.mkdir()
    (made.folder / "result.json").write_text("{")
    with pytest.raises(SearchError, match=r"result\.json: cannot be read .* delete it"):
        run_comparison([made], ensemble="best", seeds=[0], uri="", progress=lambda line: None)


def made_up(
    *searches: tuple[str, str, str], masks: int = 5, ratios: int = 5, source: str = "synthetic"
) -> list[dict[str, Any]]:
    return [
        {
            "search": name,
            "source": source,
            "family": family,
            "trained_on": trained_on,
            "missing_ratio": round(0.1 + 0.2 * i, 1),
            "units": "standardised units",
            "masks": masks,
            "missing_rmse": 0.1 * (i + number + 1),
            "missing_rmse_lowest": 0.09 * (i + number + 1),
            "missing_rmse_highest": 0.11 * (i + number + 1),
        }
        for number, (name, family, trained_on) in enumerate(searches)
        for i in range(ratios)
    ]


PAPER = [
    (f"s-{family}{'-none' if trained_on == 'complete rows' else ''}", family, trained_on)
    for family in ("vad", "vae")
    for trained_on in ("the same ratio", "complete rows")
]


@pytest.mark.parametrize(
    "rows",
    [
        made_up(("vad", "vad", "the same ratio"), ("vad_adversarial_with_a_long_name", "vad", "complete rows")),
        made_up(("a", "vad", "the same ratio"), ("b", "vad", "the same ratio"), ("c", "vae", "complete rows")),
        made_up(("one", "vad", "complete rows"), masks=1, ratios=1),
        made_up(*((f"search{i}", "vad", "the same ratio") for i in range(9))),
        [*made_up(*PAPER), *made_up(*PAPER, source="digits", ratios=2)],
    ],
    ids=["adversarial", "one family twice", "one point", "many", "two sources"],
)
def test_every_comparison_can_be_drawn(rows: list[dict[str, Any]]) -> None:
    png = comparison_plot(rows)
    assert png.startswith(b"\x89PNG")
    assert comparison_plot(rows) == png, "the same rows give the same bytes"


def test_lines_are_named_and_coloured_by_what_tells_them_apart() -> None:
    curves = _curves(made_up(*PAPER))
    assert list(curves) == ["VAD", "VAD, adversarial", "VAE", "VAE, adversarial"]
    panels = {"synthetic": curves, "digits": _curves(made_up(*PAPER, source="digits"))}
    colours = _curve_colours(panels)
    assert colours["synthetic"] == colours["digits"], "a family keeps its colour from panel to panel"
    vad, vad_complete, vae, vae_complete = colours["digits"].values()
    assert vad == vad_complete != vae == vae_complete
    same = _curves(made_up(("a", "vad", "the same ratio"), ("b", "vad", "the same ratio")))
    assert list(same) == ["a", "b"]
    assert len(set(_curve_colours({"synthetic": same})["synthetic"].values())) == 2


def test_a_cell_with_a_result_is_not_searched(files: list[str], tmp_path: Path) -> None:
    made = cell(tmp_path, files)
    made.folder.mkdir()
    row = {"search": "one", "missing_ratio": 0.3}
    (made.folder / "result.json").write_text(json.dumps({"ensemble": "top:2", "seeds": [0], "row": row, "masks": []}))
    done = run_comparison([made], ensemble="top:2", seeds=[0], uri="", progress=lambda line: None)
    assert done.rows == [row]
