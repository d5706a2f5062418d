"""Valid files damaged at random, and random bytes: every reader of data answers with data or with an error of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.own_data import write_published
from vadtune.core.errors import VadtuneError
from vadtune.data import SOURCES, load_dataset
from vadtune.data.missingness import read_mask
from vadtune.data.sources.table_file import TableFile
from vadtune.tables import TABLES, read_table

ROWS, COLUMNS = 24, ["a", "b", "c"]
# The same files each time: what one run of the tests refuses, the next one does as well.
FUZZ = settings(
    max_examples=150,
    deadline=None,  # a busy machine is no crash
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large, HealthCheck.too_slow],
)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Draws what happens to a file: bytes replaced, put in, left out or zeroed, most of all at its ends; or cut off."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["start", "end", "anywhere"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 8),
                st.one_of(st.binary(max_size=8), st.sampled_from([b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 3])),
            ),
            min_size=1,
            max_size=4,
        )
    )
    cut = draw(st.one_of(st.none(), st.floats(0, 1)))

    def apply(content: bytes) -> bytes:
        damaged = bytearray(content)
        for where, at, length, new in edits:
            near = min(len(damaged), 200)
            span, first = {"start": (near, 0), "end": (near, len(damaged) - near), "anywhere": (len(damaged), 0)}[where]
            place = first + int(at * span)
            damaged[place : place + length] = new
        return bytes(damaged if cut is None else damaged[: int(cut * len(damaged))])

    return apply


def written(path: Path) -> bytes:
    """Returns a valid table of numbers with holes, of the kind that the file's name ends in."""
    x = np.random.default_rng(0).normal(size=(ROWS, len(COLUMNS))).round(3)
    x[2, 1] = np.nan
    match path.suffix:
        case ".npy":
            np.save(path, x)
        case ".npz":
            np.savez_compressed(path, x=x, columns=np.array(COLUMNS))
        case ".parquet":
            pd.DataFrame(x, columns=COLUMNS).to_parquet(path, index=False)
        case _:
            separator = "\t" if path.suffix == ".tsv" else ","
            pd.DataFrame(x, columns=COLUMNS).to_csv(path, index=False, sep=separator)
    return path.read_bytes()


def read_all(path: Path) -> None:
    """Reads a table in all the ways there are: to search on, as a mask, and to be filled."""
    with contextlib.suppress(VadtuneError):
        load_dataset(TableFile(source="file", path=str(path)))
    with contextlib.suppress(VadtuneError):
        read_table(path, na_values=["-99", "?"])
    with contextlib.suppress(VadtuneError):
        read_mask(path, (ROWS, len(COLUMNS)), COLUMNS)


@pytest.mark.parametrize("suffix", TABLES)
def test_no_damage_to_a_table_crashes_a_reader(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    valid = written(path)
    assert load_dataset(TableFile(source="file", path=str(path))).train.x.shape[1] == len(COLUMNS)

    @FUZZ
    @given(damaged=damage())
    def fuzz(damaged: Callable[[bytes], bytes]) -> None:
        path.write_bytes(damaged(valid))
        read_all(path)

    fuzz()


@pytest.mark.parametrize("suffix", TABLES)
def test_no_bytes_crash_a_reader_of_tables(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    text = st.text(st.sampled_from('0123456789.eE+-,;\t\n\r" \x00naif\u00e9\ufeff'), max_size=120)

    @FUZZ
    @given(content=st.one_of(st.binary(max_size=200), text.map(str.encode)))
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        read_all(path)

    fuzz()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mnist", "sfm", "mosi"])
@pytest.mark.parametrize("which", ["complete", "masked"])
def test_no_damage_to_an_hdf5_file_crashes_its_reader(source: str, which: str, tmp_path: Path) -> None:
    prefix = write_published(tmp_path, source, ratios=(0.5,)).prefix
    path = prefix.with_name(f"{prefix.name}.h5" if which == "complete" else f"{prefix.name}_0.5.h5")
    config = SOURCES[source].model_validate(
        {"source": source, "path": str(prefix), "missing": {"mechanism": "file", "ratio": 0.5}}
    )
    load_dataset(config)
    valid = path.read_bytes()

    @FUZZ
    @given(damaged=damage())
    def fuzz(damaged: Callable[[bytes], bytes]) -> None:
        path.write_bytes(damaged(valid))
        with contextlib.suppress(VadtuneError):
            load_dataset(config)

    fuzz()
