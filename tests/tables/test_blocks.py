"""Reading and filling in several blocks of rows gives what one block gives."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vadtune.core.errors import DataError
from vadtune.core.files import new_file
from vadtune.tables import TABLES, Cells, base, open_table, parquet, read_table, text
from vadtune.tables.base import NotNumericError

NAMES = ["a", "b", "c"]
ROWS = 40


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK_CELLS", 21)
    monkeypatch.setattr(parquet, "_READ_CELLS", 21)
    for name in ("_FIRST_BYTES", "_BLOCK_BYTES", "_FILL_BYTES"):
        monkeypatch.setattr(text, name, 64)


def table() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, len(NAMES))).round(3)
    x[rng.random(x.shape) < 0.3] = np.nan
    return x


def write(path: Path, x: np.ndarray) -> Path:
    match path.suffix:
        case ".npy":
            np.save(path, x)
        case ".npz":
            np.savez_compressed(path, x=x, other=np.arange(3))
        case ".parquet":
            pd.DataFrame(x, columns=NAMES).to_parquet(path, row_group_size=11)
        case _:
            pd.DataFrame(x, columns=NAMES).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def filler(sizes: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    def fill(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return np.where(np.isnan(x), np.array([3.0, 1.0, 2.0]), x)  # in the order of COLUMNS

    return fill


COLUMNS = [2, 0, 1]
FILLED = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", TABLES)
def test_blocks_are_read_and_filled_as_the_whole(suffix: str, order: str, tmp_path: Path) -> None:
    x = table()
    path = write(tmp_path / f"t{suffix}", np.asarray(x, order="F" if order == "F" else "C"))
    np.testing.assert_array_equal(read_table(path).x, x)
    out, sizes = tmp_path / f"out{suffix}", list[int]()
    open_table(path).copy_filled(out, COLUMNS, Cells(), filler(sizes))
    assert len(sizes) > 2
    assert sum(sizes) == ROWS
    np.testing.assert_array_equal(read_table(out).x, np.where(np.isnan(x), FILLED, x))
    if suffix == ".npy":
        assert np.load(out).flags.f_contiguous == (order == "F")
    if suffix == ".npz":
        with np.load(out) as arrays:
            np.testing.assert_array_equal(arrays["other"], np.arange(3))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quoted_fields_may_span_the_end_of_a_block(end: str, tmp_path: Path) -> None:
    rows = [f'{i},"x{end}{end}""{i},",{i}.5' for i in range(30)]
    path = tmp_path / "t.csv"
    path.write_bytes(end.join(["a,b,c", *rows]).encode())
    np.testing.assert_array_equal(read_table(path, ["a", "c"]).x, [[i, i + 0.5] for i in range(30)])


def test_a_bad_cell_in_a_later_block_is_named_by_its_row_and_leaves_no_file(tmp_path: Path) -> None:
    rows = [f"{i},,2" for i in range(30)]
    rows[25] = "x,,2"
    path, folder = tmp_path / "t.csv", tmp_path / "out"
    path.write_text("\n".join(["a,b,c", "", *rows]) + "\n")
    with pytest.raises(NotNumericError, match="a holds 'x' in row 26"):
        read_table_file(path)
    with pytest.raises(DataError, match="a holds 'x' in row 26"), new_file(folder / "t.csv") as out:
        open_table(path).copy_filled(out, [0, 1, 2], Cells(), filler([]))
    assert not list(folder.iterdir())


def read_table_file(path: Path) -> np.ndarray:
    return open_table(path).numbers([0, 1, 2], Cells())


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_damage_in_a_later_block_is_an_error_of_the_data(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"t{suffix}", table())
    if suffix == ".npy":
        path.write_bytes(path.read_bytes()[:-5])
    elif suffix == ".npz":
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            start = archive.getinfo("x.npy").header_offset
        content[start + 250] ^= 0xFF
        path.write_bytes(content)
    else:
        content = bytearray(path.read_bytes())
        content[600:640] = bytes(40)
        path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_table(path)


@pytest.mark.parametrize("cell", ["1_0", "nan(1)", "0x10", "1,5", "\ufeff1"])
def test_what_python_takes_for_no_number_is_none(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(f"a\tb\n1\t2\n{cell}\t3\n", encoding="utf-8")
    with pytest.raises(NotNumericError):
        open_table(path).numbers([0, 1], Cells())


def test_numbers_are_those_of_python_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = [repr(float(value)) for value in rng.normal(size=300) * 10.0 ** rng.integers(-300, 300, 300)]
    texts += [
        "1e-320",
        "123456789012345678901234567890.123456",
        "9007199254740993",
        "5.",
        ".5",
        "-inf",
        "1E+3",
        "+8",
        "1e400",
    ]
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{one}, {one} \n" for one in texts))
    expected = np.array([[float(one)] * 2 for one in texts])
    np.testing.assert_array_equal(read_table(tmp_path / "t.csv").x, expected)
