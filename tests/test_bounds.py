"""Files and values that ask for more than any machine has: one line, exit code 2, soon and in little memory."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.hostile import ROOT, SECONDS, refused, run
from vadtune.artifacts.run_folder import Run, write_run
from vadtune.core.reading import bounded_lines, end_of_lines
from vadtune.tracking.spool import SPOOL_FILE

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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "message"), TABLES, ids=[name for name, _, _ in TABLES])
def test_a_table_beyond_all_bounds_is_refused(
    name: str, make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    assert message in refused("init", name, "--out", "x.yaml", folder=tmp_path)


def many_keys(path: Path) -> None:
    path.write_text(HEAD + "".join(f"k{i}: 1\n" for i in range(90_000)))


def unknown_keys(path: Path) -> None:
    path.write_text(HEAD + "model:\n" + "".join(f"  k{i}: 1\n" for i in range(9_000)))


def no_search(path: Path) -> None:
    path.write_text("root:$6$salt$SECRET:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n")


def other_yaml(path: Path) -> None:
    path.write_text("token: SECRET\nSECRET: [1, 2]\n")


def fine_grid(path: Path) -> None:
    path.write_text(HEAD + "model: {dropout: {quniform: [0, 0.9, 1.0e-12]}}\nsearch: {sampler: grid}\n")


def large_grid(path: Path) -> None:
    domain = "{int: [1, 1000]}"
    path.write_text(HEAD + f"model: {{latent: {domain}, hidden: {domain}}}\nsearch: {{sampler: grid}}\n")


def many_steps(path: Path) -> None:
    path.write_text(HEAD + "infer: {steps: 1000000000000000}\n")


SEARCH_FILES: list[tuple[Callable[[Path], None], str]] = [
    (many_keys, "at most 20000 keys and values in 50 levels expected, got more"),
    (no_search, "needs sections (name, data, model, ...), got none of them"),
    (other_yaml, "needs sections (name, data, model, ...), got none of them"),
    (fine_grid, "quniform has at most 1000000000 values, got a step of 1e-12"),
    (large_grid, "a grid has at most 100,000 points, got 1,000,000 up to model.hidden"),
    (many_steps, "infer.steps: must be less than or equal to 1000000, got 1000000000000000"),
    (pipe, "cannot be read (not a regular file)"),
    (device, "cannot be read (not a regular file)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "message"), SEARCH_FILES, ids=lambda value: getattr(value, "__name__", None))
def test_a_search_file_beyond_all_bounds_is_refused(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "search.yaml")
    line = refused("validate", "search.yaml", folder=tmp_path)
    assert message in line
    assert "SECRET" not in line


@pytest.mark.slow
def test_thousands_of_unknown_keys_are_told_soon_and_some_of_them_only(tmp_path: Path) -> None:
    unknown_keys(tmp_path / "search.yaml")
    ended = run("validate", "search.yaml", folder=tmp_path)
    assert (ended.code, ended.errors.count("\n")) == (2, 20)
    assert ended.seconds < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config_0.json", ["import-config", "config_0.json", "--source", "iris"]),
        ("tiny/run.json", ["resume", "tiny"]),
        ("model/manifest.json", ["retest", "model", "--no-log"]),
        ("best/ensemble.json", ["impute", "best", "x.csv", "--out", "y.csv"]),
        ("data.h5", ["train", "published.yaml"]),
        ("mask.npy", ["train", "masked.yaml"]),
    ],
)
def test_no_command_waits_for_a_pipe_or_reads_a_device(
    name: str, command: list[str], make: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    (tmp_path / "published.yaml").write_text("name: tiny\ndata: {source: mosi, path: data}\n")
    (tmp_path / "masked.yaml").write_text(
        "name: tiny\ndata: {source: iris, missing: {mechanism: file, path: mask.npy}}\n"
    )
    line = refused(*command, folder=tmp_path)
    assert "not a regular file" in line or "a symbolic link that leaves its folder" in line


def test_the_log_of_a_search_is_a_file_of_bounded_lines(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    write_run(tmp_path / "tiny", Run("tiny", "tiny", "1", "2", "sqlite:///x.db", "tune"))
    (tmp_path / "tiny" / "lock").touch()
    assert "holds no log of a search" in refused("prune", "tiny", folder=tmp_path)
    pipe(tmp_path / "tiny" / SPOOL_FILE)
    assert "not a regular file" in refused("prune", "tiny", folder=tmp_path)
    log = tmp_path / "log"
    log.write_bytes(b"one\n" + b"x" * 200_000 + b"\nlast\nbroken off")
    assert max(map(len, bounded_lines(log, 1000))) == 1000
    assert [line for line in bounded_lines(log, 1000) if len(line) < 100] == [b"one\n", b"\n", b"last\n", b"broken off"]
    assert end_of_lines(log) == log.stat().st_size - len(b"broken off")
    log.write_bytes(b"x" * 200_000)
    assert end_of_lines(log) == 0


@pytest.mark.parametrize(
    "content",
    ["root:$6$SECRET:19000:0\nbin:*:19000:0\n", '{"token": "SECRET", "more": "SECRET"}\n', "SECRET,\nSECRET,b\n"],
)
def test_what_is_no_table_is_not_repeated(content: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(content)
    assert "SECRET" not in refused("init", "table.csv", "--out", "x.yaml", folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "model.latent=65536 model.layers=0 model.posterior=learned",
        "model.latent=65536 model.hidden=65536 model.layers=100",
        "data.source=synthetic data.rows=1000000000000",
        "data.source=synthetic data.rows=1000000000 data.width=50000",
        "data.source=synthetic data.width=100000000",
        "data.source=synthetic data.depth=1000000000",
        "data.sample=100000000000000000000",
    ],
)
def test_what_needs_too_much_memory_or_time_is_refused(override: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(HEAD + "train: {epochs: 2}\n")
    refused("train", "config.yaml", *override.split(), folder=tmp_path)


READS = re.compile(r"\.read_text\(|\.read_bytes\(|\.open\(|(?<![\w.])open\(|np\.load\(")
KNOWN = {  # places that read only what vadtune or its libraries installed, or what a bounded reader returned
    *("core/memory.py", "core/processes.py", "core/shipped.py", "core/reading.py", "cli/search_files.py"),
    *("cli/__init__.py", "data/sources/bundled.py", "artifacts/held_out_predictions.py", "data/retest_masks.py"),
    *("tables/arrays.py", "tables/text.py", "artifacts/run_folder.py", "training/refit.py"),
    *("tracking/empty_store.py", "tracking/store.py", "tracking/spool.py"),
}


def test_files_of_others_are_opened_in_one_place() -> None:
    package = ROOT / "vadtune"
    folders = (
        "core",
        "tables",
        "config",
        "data",
        "training",
        "artifacts",
        "tracking",
        "ensemble",
        "evaluation",
        "compat",
        "cli",
    )
    readers = {
        str(path.relative_to(package))
        for name in folders
        for path in (package / name).rglob("*.py")
        if READS.search(path.read_text())
    }
    assert readers <= KNOWN, "use core/reading.py"
