from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.conftest import trial_config
from tests.evaluation.test_retest import save_trained
from vadtune.artifacts.model_folder import find_model_folders, load_model
from vadtune.cli import main
from vadtune.core.errors import DataError, ModelFolderError
from vadtune.data import MaskedRows
from vadtune.ensemble.model_average import ModelAverage

NAMES = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
HEADER = ",".join(NAMES)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("impute") / "best"
    save_trained(folder / "1-a", trial_config())
    save_trained(folder / "2-b", trial_config(model={"family": "vae"}, data={"missing": {"ratio": 0.6}}))
    return folder


@pytest.fixture
def impute(best: Path, tmp_path: Path) -> Callable[..., bytes]:
    """Writes a file, imputes it by the command and returns what came out."""

    def run(name: str, content: bytes | str, *options: str) -> bytes:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        out = tmp_path / f"filled{Path(name).suffix}"
        assert main(["impute", str(best), str(tmp_path / name), "--out", str(out), *options]) == 0
        return out.read_bytes()

    return run


def test_holes_are_the_mean_of_the_models_in_the_source_s_units(best: Path) -> None:
    x = np.array([[5.1, np.nan, 1.4, np.nan], [6.0, 3.0, 4.0, 1.0]])
    expected = np.zeros(4)
    for folder in find_model_folders(best):
        model = load_model(folder)
        assert model.scaler is not None
        part = MaskedRows.hide(model.scaler.transform(x[:1]), ~np.isnan(x[:1]))
        expected += model.scaler.inverse(model.impute(part))[0] / 2
    filled = ModelAverage.load(best).fill(x)
    np.testing.assert_allclose(filled.x[0], expected, rtol=1e-6)
    observed = ~np.isnan(x)
    np.testing.assert_array_equal(filled.x[observed], x[observed])
    assert filled.empty_rows == 0


def test_a_row_without_anything_observed_is_the_prior_s_mean(best: Path, tmp_path: Path) -> None:
    empty = np.full((2, 4), np.nan)
    filled = ModelAverage.load(best).fill(empty)
    assert filled.empty_rows == 2
    np.testing.assert_array_equal(filled.x[0], filled.x[1])
    save_trained(tmp_path / "linear", trial_config(model={"layers": 0}, train={"kl_weight": 1.0}))
    model = load_model(tmp_path / "linear")
    assert model.scaler is not None
    bias = model.weights[-4:].numpy()  # what a linear decoder gives at zero
    np.testing.assert_allclose(
        ModelAverage((model,), (1.0,), ("linear",)).fill(empty).x[0], model.scaler.inverse(bias), rtol=1e-6
    )


def test_a_train_prior_changes_the_imputation_of_empty_rows(tmp_path: Path) -> None:
    config = trial_config(model={"layers": 0, "posterior": "none"}, train={"latent_init": "normal"})
    save_trained(tmp_path / "standard", config)
    save_trained(
        tmp_path / "train", config.model_copy(update={"infer": config.infer.model_copy(update={"prior": "train"})})
    )
    empty = np.full((1, 4), np.nan)
    standard, train = (ModelAverage.load(tmp_path / name).fill(empty).x for name in ("standard", "train"))
    assert not np.array_equal(standard, train)


def test_no_rows_and_full_rows_come_back(best: Path) -> None:
    models = ModelAverage.load(best)
    assert models.fill(np.empty((0, 4))).x.shape == (0, 4)
    full = np.array([[5.1, 3.5, 1.4, 0.2]])
    np.testing.assert_array_equal(models.fill(full).x, full)


def test_models_of_other_columns_are_not_averaged(best: Path, tmp_path: Path) -> None:
    save_trained(tmp_path / "a", trial_config())
    save_trained(tmp_path / "b", trial_config(data={"source": "wine"}))
    with pytest.raises(ModelFolderError, match="must share their columns, but b has others than a"):
        ModelAverage.load(tmp_path)


@pytest.mark.parametrize("value", [1e300, np.inf])
def test_values_no_model_can_take_in_are_named(value: float, best: Path) -> None:
    with pytest.raises(DataError, match=r"got .* in row 2; correct it"):
        ModelAverage.load(best).fill(np.array([[5.0, 3.0, 1.0, 0.2], [value, np.nan, 1.0, 0.2]]))


def test_observed_text_stays_as_it_was(impute: Callable[..., bytes]) -> None:
    rows = [
        '"sepal length (cm)", sepal width (cm) ,petal width (cm),petal length (cm)'.replace(
            " sepal width (cm) ", NAMES[1]
        ),
        "5.10000,3.5e0,,1.4",
        '" 6.0 ",003, .5 ,"4"',
        "",
        "+5,,NaN,1.25000000000000000001",
    ]
    text = "\ufeff" + "\r\n".join(rows)
    filled = impute("t.csv", text).decode()
    assert filled.startswith("\ufeff" + rows[0] + "\r\n5.10000,3.5e0,")
    assert filled.splitlines()[1].endswith(",1.4")
    assert filled.splitlines()[2:4] == rows[2:4]
    last = filled.split("\r\n")[4].split(",")
    assert (last[0], last[3]) == ("+5", "1.25000000000000000001")
    assert all(np.isfinite(float(cell)) for cell in last)
    assert not filled.endswith("\n"), "no end of line where there was none"


def test_columns_go_by_name_in_any_order(impute: Callable[..., bytes]) -> None:
    one = impute("a.csv", f"{HEADER}\n5.1,3.5,1.4,\n").decode().splitlines()[1].split(",")
    other = impute("b.csv", ",".join(NAMES[::-1]) + "\n,1.4,3.5,5.1\n").decode().splitlines()[1].split(",")
    assert other == one[::-1]


def test_named_texts_are_holes(impute: Callable[..., bytes]) -> None:
    plain = impute("a.csv", f"{HEADER}\n5.1,,1.4,\n")
    assert impute("b.csv", f"{HEADER}\n5.1,NA,1.4,-999.0\n", "--na-values", "NA,-999") == plain
    tabs = impute("c.tsv", f"{HEADER}\n5.1,,1.4,\n".replace(",", "\t"))
    assert tabs.replace(b"\t", b",") == plain


def test_empty_rows_are_counted(impute: Callable[..., bytes], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    impute("a.csv", f"{HEADER}\n,,,\n5.1,3.5,,.2\n ,NaN,,nan\n")
    assert "2 rows have no observed cell: filled from the prior mean alone" in caplog.text
    assert "filled 9 of 12 cells by the mean of 2 models" in caplog.text


def test_a_parquet_file_keeps_values_types_and_metadata(impute: Callable[..., bytes]) -> None:
    big = 2**60 + 1  # no float64 holds it
    columns = [
        pa.array([5.1, None, float("nan")], pa.float64()),
        pa.array([3.5, 2.5, None], pa.float32()),
        pa.array([big, None, 3], pa.int64()),
        pa.array([0, 1, 2], pa.int16()),
    ]
    table = pa.table(columns, names=NAMES).replace_schema_metadata({"mine": "kept"})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    filled = parquet.read_table(io.BytesIO(impute("t.parquet", sink.getvalue())))
    assert filled.schema.equals(table.schema, check_metadata=True)
    assert sum(column.null_count for column in filled.columns) == 0
    for before, after in zip(table.columns, filled.columns, strict=True):
        for one, other in zip(before.to_pylist(), after.to_pylist(), strict=True):
            assert other == other, "no NaN is left"
            assert one is None or one != one or one == other


@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.date32(), pa.list_(pa.int8())], ids=str)
def test_a_parquet_column_without_a_value_may_have_any_type(kind: pa.DataType, impute: Callable[..., bytes]) -> None:
    columns = [pa.array([5.1, 4.9]), pa.array([3.5, 2.5]), pa.nulls(2, kind), pa.array([0.2, 0.3])]
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns, names=NAMES), sink)
    filled = parquet.read_table(io.BytesIO(impute("t.parquet", sink.getvalue())))
    assert filled.column(2).type == pa.float64()
    assert filled.column(2).null_count == 0


def test_a_frame_of_pandas_comes_back(impute: Callable[..., bytes], tmp_path: Path) -> None:
    frame = pd.DataFrame({name: [1.0 + i, np.nan, 2.0] for i, name in enumerate(NAMES)}, index=[3, 1, 2])
    frame.to_parquet(tmp_path / "frame.parquet", index=True)
    plain = pa.Table.from_pandas(frame, preserve_index=False)
    sink = io.BytesIO()
    parquet.write_table(plain, sink)
    back = pd.read_parquet(io.BytesIO(impute("t.parquet", sink.getvalue())))
    pd.testing.assert_frame_equal(back.iloc[[0, 2]], frame.reset_index(drop=True).iloc[[0, 2]])
    assert back.notna().all(axis=None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8", np.int32])
def test_arrays_keep_values_and_type(dtype: str, impute: Callable[..., bytes]) -> None:
    array = np.asfortranarray(np.array([[5, 3, -999, 0], [6, 3, 5, 2]], dtype=dtype))
    buffer = io.BytesIO()
    np.save(buffer, array)
    back = np.load(io.BytesIO(impute("t.npy", buffer.getvalue(), "--na-values", "-999")))
    assert back.dtype == array.dtype
    observed = array != -999
    np.testing.assert_array_equal(back[observed], array[observed])
    assert 0 < back[0, 2] < 10


def test_an_archive_keeps_its_other_arrays(impute: Callable[..., bytes]) -> None:
    buffer = io.BytesIO()
    x = np.array([[0.2, np.nan, 3.5, 5.1]], dtype=np.float32)
    np.savez(buffer, table=x, columns=NAMES[::-1], ids=np.array([7]))
    with np.load(io.BytesIO(impute("t.npz", buffer.getvalue()))) as back:
        assert set(back.files) == {"table", "columns", "ids"}
        assert back["ids"] == 7
        np.testing.assert_array_equal(back["table"][:, [0, 2, 3]], x[:, [0, 2, 3]])
        assert np.isfinite(back["table"]).all()


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def parquet_of(**columns: list[object]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", f"{NAMES[0]},{NAMES[1]},{NAMES[3]},id\n1,2,3,4\n", "got missing 'petal length (cm)'; extra 'id'"),
        ("t.csv", f"{HEADER},{NAMES[0]}\n1,2,3,4,5\n", "twice 'sepal length (cm)'"),
        ("t.csv", f"{HEADER}\n1,2,3\n", "needs 4 cells in each row, as in its header, got 3 in row 1"),
        ("t.csv", f"{HEADER}\n1,2,3,4\n1,x,3,4\n", "got sepal width (cm) (sepal width (cm) holds 'x' in row 2)"),
        ("t.csv", f"{HEADER}\n1,1_0,3,4\n", "holds '1_0' in row 1"),
        ("t.csv", f"{HEADER}\n1,inf,3,4\n", "near those the models were trained on, got inf in row 1; correct it"),
        ("t.csv", f"{HEADER}\n1,1e300,,4\n", "must be near those the models were trained on, got 1e+300 in row 1"),
        ("t.csv", "", "needs a header line"),
        ("t.csv", b"\xff\xfe", "must be UTF-8 text, but byte 0 is not"),
        ("t.txt", "a", "takes a file that ends in .csv, .tsv, .parquet, .npy, .npz, got '.txt'"),
        ("t.npy", npy(np.zeros((2, 3))), "must have the 4 columns of the model ('sepal length (cm)', "),
        ("t.npy", npy(np.zeros(3)), "must be an array of rows and columns, got shape (3,)"),
        ("t.npy", npy([object()]), "cannot be read as numpy arrays"),
        ("t.npy", npz(x=np.zeros((2, 4))), "is an archive of arrays; name it .npz"),
        ("t.npz", npy(np.zeros((2, 4))), "holds one bare array; name it .npy"),
        ("t.npz", npz(a=np.zeros((2, 4)), b=np.zeros((2, 4))), "needs an array named x, got a, b"),
        ("t.npz", npz(x=np.zeros((2, 4)), columns=np.array(["a"])), "got 1 names for 4 columns"),
        ("t.npz", b"PK\x03\x04", "cannot be read as numpy arrays"),
        ("t.parquet", b"text", "cannot be read as Parquet"),
        ("t.parquet", parquet_of(name=["a"]), "extra 'name'"),
        ("t.parquet", parquet_of(**{name: [None, "a"] for name in NAMES}), "(sepal length (cm) holds 'a' in row 2)"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_filled_is_reported_on_one_line(
    name: str, content: bytes | str, message: str, best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / name, tmp_path / f"out{Path(name).suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert main(["impute", str(best), str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vadtune: error: {path}: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_itself_is_never_overwritten(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\n1,,3,4\n")
    (tmp_path / "link.csv").symlink_to(path)
    (tmp_path / "folder.csv").mkdir()
    for out, message in [("t.csv", "another file"), ("link.csv", "another file"), ("folder.csv", "got the folder")]:
        assert main(["impute", str(best), str(path), "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    assert path.read_text() == f"{HEADER}\n1,,3,4\n"
