from __future__ import annotations

import contextlib
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import trial_config
from tests.own_data import data_config, write_table
from vadtune.cli import main
from vadtune.config import load_search, load_trial
from vadtune.core.errors import DataError
from vadtune.data import load_dataset
from vadtune.data.missingness import read_mask
from vadtune.data.retest_masks import MaskKey, cells_to_score, draw_masks
from vadtune.data.sources.table_file import TableFile
from vadtune.tables import TABLES, read_table

NAN = np.nan
COLUMNS = ["age", "height", "weight", "visits"]


def test_holes_of_a_csv_are_empty_nan_and_what_the_user_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffa,b,2019\n1,,3.5\nNaN,2,?\n-99,0.1,1e3\n", encoding="utf-8")
    table = read_table(path, na_values=["?", "-99"])
    assert table.names == ["a", "b", "2019"]
    np.testing.assert_array_equal(table.x, [[1, NAN, 3.5], [NAN, 2, NAN], [NAN, 0.1, 1000]])
    assert read_table(path, columns=["2019", "a"], na_values=["?", "-99"]).names == ["2019", "a"]


@pytest.mark.parametrize("suffix", ["parquet", "npz", "npy"])
def test_other_formats_hold_the_same(suffix: str, tmp_path: Path) -> None:
    x = np.array([[1.0, NAN], [-99.0, 4.0], [5.0, 6.0]])
    path = tmp_path / f"t.{suffix}"
    match suffix:
        case "parquet":
            frame = pd.DataFrame({"x0": pd.array([1, -99, 5], dtype="Int64"), "x1": x[:, 1], "note": ["a", "b", "c"]})
            frame.to_parquet(path, index=False)
        case "npz":
            np.savez(path, x=x, columns=np.array(["x0", "x1"]), other=np.zeros(3))
        case "npy":
            np.save(path, x)
    table = read_table(path, columns=["x0", "x1"], na_values=["-99"])
    np.testing.assert_array_equal(table.x, [[1, NAN], [NAN, 4], [5, 6]])
    assert table.names == ["x0", "x1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a,b,c\n1,x y,3\n1,,2020-01-01\n",
            r"got b, c \(b holds 'x y' in row 1\); list .* or leave them out with columns: \[a\]",
        ),
        ("a,b\n1,NA\n2,3\n", r"got b \(b holds 'NA' in row 1\); list texts of missing cells in na_values"),
        ("a,b\n1,True\n2,False\n", r"got b \(b holds 'True' in row 1\)"),
        ("a,b\n1,2,3\n4,5,6\n", "needs 2 cells in each row, as in its header, got 3 in row 1"),
        ("a,b\n1,2\n4,5,6\n", "needs 2 cells in each row, as in its header, got 3 in row 2"),
        ("a,b\n1,2\n4\n", "needs 2 cells in each row, as in its header, got 1 in row 2"),
        ("a,a\n1,2\n", "column names must be unique, got 'a' twice; rename one"),
        ("", "needs a header line with the names of the columns, and is empty"),
        ("a\n1\n2\n", "has 2 rows, too few"),
        ("\xff\xfe\x00", "must be UTF-8 text, but byte 0 is not; convert the file"),
    ],
)
def test_what_is_no_table_of_numbers_is_told_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=message) as raised:
        load_dataset(TableFile(source="file", path=str(tmp_path / "t.csv")))
    assert "\n" not in str(raised.value)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["t.npz", "t.npy", "raw.npy", "t.parquet", "cut.npz"])
def test_hostile_and_damaged_files_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    evil = np.array([[_Evil(), 1.0]], dtype=object)
    match name:
        case "t.npz":
            np.savez(path, x=evil)
        case "t.npy":
            np.save(path, evil)
        case "raw.npy":
            path.write_bytes(pickle.dumps(_Evil()))
        case "t.parquet":
            path.write_bytes(b"PAR1 no table PAR1")
        case _:
            np.savez(path, x=np.zeros((40, 3)))
            path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot be read as (numpy arrays|Parquet)") as raised:
        read_table(path)
    assert "\n" not in str(raised.value)
    assert ("could execute code" in str(raised.value)) == (name in ("t.npz", "t.npy", "raw.npy"))
    assert not (tmp_path / "executed").exists()


_NPY = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }"


@pytest.mark.parametrize("suffix", TABLES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.text("a1,.-\n\"'N \t", max_size=40).map(str.encode), st.just(_NPY)))
def test_no_content_makes_anything_but_our_own_errors(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        table = read_table(path)
        assert table.x.dtype == np.float64
        assert table.x.shape[1] == len(table.names)


def test_files_and_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    with pytest.raises(DataError, match=r"unknown column 'hight': did you mean 'height'\?"):
        read_table(path, columns=["age", "hight"])
    with pytest.raises(DataError, match=r"other\.csv: cannot be read \(No such file .*\); name an existing table"):
        read_table(tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"ends in \.csv, \.tsv, \.parquet, \.npy, \.npz, got '\.xls'"):
        read_table(tmp_path / "table.xls")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(DataError, match="needs an array named x, got a, b; rename the table to x"):
        read_table(tmp_path / "two.npz")
    np.save(tmp_path / "deep.npy", np.zeros((2, 2, 2)))
    with pytest.raises(DataError, match=r"shape \(2, 2, 2\)"):
        read_table(tmp_path / "deep.npy")


def holey(folder: Path, rows: int = 80) -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 1)) @ rng.normal(size=(1, 5)) + 0.1 * rng.normal(size=(rows, 5))
    x[rng.random(x.shape) < 0.2] = np.nan
    np.save(folder / "holey.npy", x)
    return folder / "holey.npy", x


@pytest.mark.parametrize("ratio", [0, 0.3])
def test_true_holes_are_never_observed_and_never_scored(ratio: float, tmp_path: Path) -> None:
    path, x = holey(tmp_path)
    missing = {"ratio": ratio}
    dataset = load_dataset(TableFile.model_validate({"source": "file", "path": str(path), "missing": missing}))
    rows = np.split(np.random.RandomState(0).permutation(len(x)), [56, 68])
    for part, index in zip((dataset.train, dataset.validation), rows, strict=False):
        assert not part.mask[np.isnan(x[index])].any()
        assert part.mask.sum() == (~np.isnan(x[index])).sum() if ratio == 0 else part.mask.any()
    held_out = dataset.search_data.validation
    assert np.isfinite(held_out.truth[held_out.cells]).all()
    for key, mask in draw_masks(dataset, [MaskKey(0.5, seed) for seed in range(3)]).items():
        holes = np.isnan(x[rows[2]])
        assert not mask[holes].any(), key
        assert not cells_to_score(dataset, mask)[holes].any()


def test_ratio_0_needs_holes(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"data\.missing\.ratio: 0 hides nothing, and .*table\.csv has no missing values; name a ratio above 0",
    ):
        load_dataset(data_config("file", tmp_path, missing="none"))


def test_paths_are_absolute_from_the_moment_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path)
    (tmp_path / "search.yaml").write_text(
        f"name: own\ndata: {{source: file, path: table.csv, columns: [{', '.join(COLUMNS)}]}}\n"
        "model: {latent: {int: [1, 3]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    search = load_search("search.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trial = search.trial_config({"model.latent": 2})
    assert trial.data.path == search.tree["data"]["path"] == search.values["data.path"] == str(tmp_path / "table.csv")
    Path("again.yaml").write_text(search.to_yaml())
    assert load_search("again.yaml") == search
    Path("trial.yaml").write_text(trial.to_yaml())
    assert load_trial("trial.yaml") == trial
    load_dataset(trial.data)


@pytest.mark.parametrize("kind", ["npy", "csv"])
def test_a_mask_of_the_users_own(kind: str, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((80, 4)) > 0.3
    path = tmp_path / f"mask.{kind}"
    if kind == "npy":
        np.save(path, mask.astype(np.int8))
    else:  # columns are matched by name, in any order
        pd.DataFrame(mask.astype(int), columns=COLUMNS)[COLUMNS[::-1]].to_csv(path, index=False)
    ratio = round(float(1 - mask.mean()), 2)
    missing = {"mechanism": "file", "path": str(path), "ratio": ratio}
    dataset = load_dataset(data_config("file", tmp_path, missing=missing))
    order = np.random.RandomState(0).permutation(80)
    np.testing.assert_array_equal(dataset.train.mask, mask[order[:56]])
    np.testing.assert_array_equal(dataset.validation.mask, mask[order[56:68]])
    np.testing.assert_array_equal(dataset.test_mask(ratio, 0), mask[order[68:]])
    with pytest.raises(DataError, match=rf"hides {1 - mask.mean():.3f} of the cells, got ratio 0\.8; name {ratio}"):
        dataset.test_mask(0.8, 0)
    with pytest.raises(DataError, match="one stored mask for each ratio, got mask seed 3; retest with --seeds 1"):
        dataset.test_mask(ratio, 3)
    adversarial = load_dataset(data_config("file", tmp_path, missing=missing, train_missing="none"))
    assert adversarial.train.mask.all()
    np.testing.assert_array_equal(adversarial.validation.mask, dataset.validation.mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((79, 4)), r"a mask of shape \(80, 4\) is needed, as the data has, got \(79, 4\)"),
        (np.full((80, 4), 2), r"1 \(observed\) and 0 \(missing\) only, got 2"),
        (np.full((80, 4), NAN), "only, got nan"),
    ],
)
def test_masks_that_are_none_are_refused(mask: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(DataError, match=message):
        load_dataset(data_config("file", tmp_path, missing={"mechanism": "file", "path": str(tmp_path / "mask.npy")}))


def test_columns_may_be_images_or_points(tmp_path: Path) -> None:
    images = load_dataset(data_config("file", tmp_path, image=[2, 2]))
    points = load_dataset(data_config("file", tmp_path, point_dims=2))
    assert (images.layout.image, points.layout.point_dims) == ((2, 2), 2)
    for dataset in (images, points):
        assert len(set(dataset.scaler.scale)) == 1
        np.testing.assert_allclose(np.nanmean(dataset.train.x**2), 1, atol=0.2)
    with pytest.raises(DataError, match=r"3 x 2 images need 6 columns, got 4"):
        load_dataset(data_config("file", tmp_path, image=[3, 2]))
    with pytest.raises(DataError, match=r"points of 3 do not fit into 4 columns"):
        load_dataset(data_config("file", tmp_path, point_dims=3))


def test_data_with_holes_is_trained_and_retested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = holey(tmp_path)
    config = trial_config(data={"source": "file", "path": str(path), "missing": {"ratio": 0}})
    (tmp_path / "trial.yaml").write_text(config.to_yaml())
    assert main(["train", str(tmp_path / "trial.yaml"), "--out", str(tmp_path / "model")]) == 0
    capsys.readouterr()
    arguments = ["--ratios", "0.2,0.5", "--seeds", "2", "--baselines", "mean", "--no-log", "--format", "json"]
    assert main(["retest", str(tmp_path / "model"), *arguments]) == 0
    assert '"missing_ratio": 0.5' in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy"])
def test_a_mask_may_be_true_and_false(kind: str, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((80, 4)) > 0.3
    path, frame = tmp_path / f"mask.{kind}", pd.DataFrame(mask, columns=COLUMNS)
    match kind:
        case "csv":
            frame.to_csv(path, index=False)
        case "parquet":
            frame.to_parquet(path, index=False)
        case _:
            np.save(path, mask)
    np.testing.assert_array_equal(read_mask(path, mask.shape, COLUMNS), mask)


def test_reading_a_table_takes_little_more_memory_than_the_table(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4000, 50))
    path = tmp_path / "t.csv"
    pd.DataFrame(x).to_csv(path, index=False)
    tracemalloc.start()
    table = read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(table.x, x)
    assert peak < 5 * path.stat().st_size


def test_the_columns_an_error_proposes_can_be_pasted_into_a_search_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({name: np.arange(40.0) for name in ("a b", "c,d", "2019", 'e"f', "no", "µ: x")})
    frame["who"] = "someone"
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError) as raised:
        read_table(tmp_path / "t.csv")
    proposed = str(raised.value).partition("columns: ")[2]
    names = yaml.safe_load(proposed)
    assert read_table(tmp_path / "t.csv", columns=names).x.shape == (40, 6)


def test_a_table_larger_than_the_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 2000), }"
    path = tmp_path / "huge.npy"
    with path.open("wb") as file:  # 2 TB that take no space on the disk
        file.write(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n")
        file.truncate(10 + len(header) + 1 + 2 * 10**12)
    with pytest.raises(DataError, match=r"1,000,000,000 rows of 2000 columns needs about 28,000 GB of memory"):
        read_table(path)
