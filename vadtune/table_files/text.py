"""Tables as text."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from vadtune.errors import DataError
from vadtune.table_files.base import Holes, Table

_FIELD = r'("(?:[^"]|"")*"[^{0}\r\n]*|[^{0}\r\n]*)({0}|\r\n|\n|\r|\Z)'


class CsvTable(Table):
    """Comma-separated text (UTF-8) with a header; blank lines are kept and mean nothing."""

    delimiter = ","

    def __init__(self, content: bytes, na_values: Collection[str]) -> None:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"must be UTF-8 text, but byte {error.start} is not; convert the file") from error
        self._start = "\ufeff" if text.startswith("\ufeff") else ""
        fields = re.findall(_FIELD.format(self.delimiter), text.removeprefix("\ufeff"))
        self._fields, self._ends = [field for field, _ in fields], [end for _, end in fields]
        rows, first = [], 0
        for index, end in enumerate(self._ends):
            if end != self.delimiter:
                if index > first or self._fields[first].strip():
                    rows.append((first, index + 1))
                first = index + 1
        if not rows:
            raise DataError("needs a header line with the names of the columns, and is empty; add one")
        self.names = [_unquoted(field) for field in self._fields[slice(*rows[0])]]
        self._starts = [start for start, _ in rows[1:]]
        holes, d = Holes(na_values), len(self.names)
        self.x = np.empty((len(rows) - 1, d))
        for i, (start, stop) in enumerate(rows[1:]):
            if stop - start != d:
                raise DataError(f"needs {d} cells in each row, as in its header, got {stop - start} in row {i + 1}")
            for j, field in enumerate(self._fields[start:stop]):
                try:
                    self.x[i, j] = holes.number(_unquoted(field).strip())
                except ValueError:
                    raise DataError(_no_number(_unquoted(field), i, self.names[j])) from None

    def filled(self, x: np.ndarray) -> bytes:
        """Returns the text with numbers of 7 digits, all a model has, in the holes."""
        fields = list(self._fields)
        for i, j in np.argwhere(self.holes):
            fields[self._starts[i] + j] = f"{x[i, j]:.7g}"
        return (self._start + "".join(map("".join, zip(fields, self._ends, strict=True)))).encode()


class TsvTable(CsvTable):
    """Tab-separated text."""

    delimiter = "\t"


def _unquoted(field: str) -> str:
    stripped = field.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] == '"':
        return stripped[1:-1].replace('""', '"')
    return field


def _no_number(text: str, row: int, column: str) -> str:
    return (
        f"cells must be numbers or empty, got '{text}' in row {row + 1}, column '{column}'; "
        f"if it means a hole, name it by --na-values"
    )
