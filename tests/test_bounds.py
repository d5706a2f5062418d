"""Files and values that ask for more than any machine has: one line, exit code 2, soon and in little memory."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.hostile import refused

HEAD = "name: tiny\ndata: {source: iris}\n"


def deflated(path: Path, **arrays: tuple[bytes, int]) -> None:
    """Writes an npz file of arrays, each a header and a number of zero bytes behind it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (header, zeros) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header)
                for _ in range(zeros // 2**24):
                    member.write(bytes(2**24))


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Returns the header of an npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def wide_csv(path: Path) -> None:
    path.write_text(",".join(f"c{i}" for i in range(100_000)) + "\n" + ",".join(["1"] * 100_000) + "\n")


def many_commas(path: Path) -> None:
    path.write_text("," * 30_000_000)


def long_cell(path: Path) -> None:
    path.write_text('a,b\n1,"' + 30_000_000 * "x" + '"\n2,3\n')


def long_header_cell(path: Path) -> None:
    path.write_text('a,"' + 30_000_000 * "x")


def quotes(path: Path) -> None:
    path.write_text('a,b\n1,"' + 15_000_000 * '""')


def long_text(path: Path) -> None:
    path.write_text("a,b\n1," + 3_000_000 * "x" + "\n2,3\n")


def wide_npy(path: Path) -> None:
    np.save(path, np.zeros((3, 1_000_000), np.float32))


def sparse_npy(path: Path) -> None:
    with path.open("wb") as file:
        file.write(header("<f8", (1_250_000_000, 4)))
        file.truncate(file.tell() + 40_000_000_000)


def npz_bomb(path: Path) -> None:
    deflated(path, x=(header("<f8", (2**26, 4)), 2**31))


def npz_names_bomb(path: Path) -> None:
    deflated(path, x=(header("<f8", (4, 4)), 128), columns=(header("<U134217728", (4,)), 2**31))


def parquet_bomb(path: Path) -> None:
    column = pa.array(np.zeros(10_000_000))
    with parquet.ParquetWriter(path, pa.schema([("a", pa.float64()), ("b", pa.float64())])) as writer:
        for _ in range(40):
            writer.write_table(pa.table({"a": column, "b": column}), row_group_size=10_000_000)


def text_bomb(path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 1_000_000]))
    parquet.write_table(pa.table({"a": words, "b": pa.array(np.arange(100_000.0))}), path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


TABLES: list[tuple[str, Callable[[Path], None], str]] = [
    ("wide.csv", wide_csv, "has at most 50,000 columns, got 100,000; leave some out"),
    ("commas.csv", many_commas, "has rows of at most 4194304 bytes"),
    ("cell.csv", long_cell, "has rows of at most 4194304 bytes"),
    ("header.csv", long_header_cell, "has rows of at most 4194304 bytes"),
    ("quotes.csv", quotes, "has rows of at most 4194304 bytes"),
    ("text.csv", long_text, "columns must be numeric, got b (b holds 'xxx"),
    ("wide.npy", wide_npy, "has at most 50,000 columns, got 1,000,000; leave some out"),
    ("sparse.npy", sparse_npy, "of memory"),
    ("bomb.npz", npz_bomb, "it unpacks to 2.1 GB, more than 100 times its "),
    ("names.npz", npz_names_bomb, "it unpacks to 2.1 GB, more than 100 times its "),
    ("bomb.parquet", parquet_bomb, "it unpacks to 6.4 GB, more than 100 times its "),
    ("text.parquet", text_bomb, "columns must be numeric, got a (a holds 'xxx"),
    *((f"pipe.{kind}", pipe, "not a regular file") for kind in ("csv", "tsv", "parquet", "npy", "npz")),
    *((f"zero.{kind}", device, "not a regular file") for kind in ("csv", "parquet", "npy", "npz")),
    ("folder.csv", folder, "Is a directory"),
]


@pytest.mark.parametrize(("name", "make", "message"), TABLES, ids=[name for name, _, _ in TABLES])
def test_a_table_beyond_all_bounds_is_refused(
    name: str, make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    assert message in refused("init", name, "--out", "x.yaml", folder=tmp_path)
