"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.reading import check_expansion, check_regular
from vadtune.core.text import one_line
from vadtune.tables.base import Cells, Fill, NotNumericError, TableFile, as_type, check_columns_count, rows_of_block

if TYPE_CHECKING:
    import pyarrow as pa

_FIRST_ROWS = 256  # of a column that is not numeric: its texts may be long
_READ_CELLS = 2**19  # at once: columns that stay near the cache while they become rows
_STREAM_BYTES = 2**20  # buffer of each column, in place of a whole row group


class ParquetFile(TableFile):
    """A Parquet file; types, null bits and metadata are kept."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.path = path
        size = check_regular(path)
        with _reported():
            self._file = parquet.ParquetFile(path, buffer_size=_STREAM_BYTES, pre_buffer=False)
            metadata = self._file.metadata
            check_columns_count(metadata.num_columns)
            check_expansion(max(_unpacked(metadata), 8.0 * metadata.num_rows * metadata.num_columns), size)
            self._schema = self._file.schema_arrow
        self.names = list(self._schema.names)
        self.rows = metadata.num_rows

    def blocks(self, columns: Sequence[int], cells: Cells) -> Iterator[np.ndarray]:
        """See TableFile."""
        self._check_numeric(columns, cells)
        for batch in self._batches(columns, max(1, _READ_CELLS // len(columns))):
            yield self._numbers(batch, columns, cells)

    def copy_filled(self, out: Path, columns: Sequence[int], cells: Cells, fill: Fill) -> None:
        """See TableFile; values are rounded in columns of whole numbers."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import parquet

        self._check_numeric(columns, cells)
        schema = self._schema
        for j, field in enumerate(schema):
            if self.rows and field.type not in _arrow_types("fiu"):  # it has no values, and may have any type
                schema = schema.set(j, field.with_type(pa.float64()))
        table_order = np.argsort(columns)
        with parquet.ParquetWriter(out, schema) as writer:
            for batch in self._batches(columns, rows_of_block(len(columns))):
                x_nan = self._numbers(batch, columns, cells)
                x, missing = fill(x_nan)[:, table_order], np.isnan(x_nan)[:, table_order]
                filled = []
                for j, field in enumerate(schema):
                    column = batch.column(self.names[j])
                    if missing[:, j].any():
                        if column.type != field.type:
                            column = pa.nulls(len(column), field.type)
                        values = as_type(np.where(missing[:, j], x[:, j], 0.0), np.dtype(field.type.to_pandas_dtype()))
                        column = pc.if_else(pa.array(missing[:, j]), pa.array(values, field.type), column)
                    filled.append(column)
                writer.write_batch(pa.record_batch(filled, schema=schema))

    def _batches(self, columns: Sequence[int], rows: int) -> Iterator[pa.RecordBatch]:
        names = None if len(columns) == len(self.names) else [self.names[index] for index in columns]
        batches = self._file.iter_batches(rows, columns=names)
        while True:
            with _reported():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _numbers(self, batch: pa.RecordBatch, columns: Sequence[int], cells: Cells) -> np.ndarray:
        empty = np.full(len(batch), np.nan)
        chosen = [batch.column(self.names[index]) for index in columns]
        values = [
            empty if column.null_count == len(column) else cells.of(column.to_numpy(zero_copy_only=False))
            for column in chosen
        ]
        return np.stack(values, axis=1)

    def _check_numeric(self, columns: Sequence[int], cells: Cells) -> None:
        """Checks that columns are numeric, or have no value at all, whatever their type."""
        others: dict[str, tuple[str, int]] = {}
        numeric = _arrow_types(cells.kinds)
        for index in columns:
            if self._schema.field(index).type not in numeric:
                first = self._first_value(index)
                if first is not None:
                    others[self.names[index]] = first
        if others:
            raise NotNumericError(others)

    def _first_value(self, index: int) -> tuple[str, int] | None:
        """Returns the first value of a column that is no null, as text, and its row."""
        start = 0
        for batch in self._batches([index], _FIRST_ROWS):
            column = batch.column(self.names[index])
            valid = np.flatnonzero(column.is_valid())
            if len(valid):
                return str(column[int(valid[0])].as_py()), start + int(valid[0])
            start += len(column)
        return None


def _unpacked(metadata: Any) -> int:
    """Returns the bytes that the row groups of a file say they unpack to."""
    return sum(abs(metadata.row_group(group).total_byte_size) for group in range(metadata.num_row_groups))


@contextmanager
def _reported() -> Iterator[None]:
    """Reports what pyarrow raises on damaged files as a DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = one_line(" ".join(str(error).split()), 300)
        raise DataError(f"cannot be read as Parquet ({reason}); name a Parquet file") from error


def _arrow_types(kinds: str) -> list[Any]:
    import pyarrow as pa

    by_kind = {
        "f": [pa.float16(), pa.float32(), pa.float64()],
        "i": [pa.int8(), pa.int16(), pa.int32(), pa.int64()],
        "u": [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()],
        "b": [pa.bool_()],
    }
    return [kind for letter in kinds for kind in by_kind[letter]]
