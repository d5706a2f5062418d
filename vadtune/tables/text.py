"""Tables as text."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from vadtune.core.errors import DataError
from vadtune.tables.base import Cells, NotNumericError, TableFile

_FIELD = r'("(?:[^"]|"")*"[^{0}\r\n]*|[^{0}\r\n]*)({0}|\r\n|\n|\r|\Z)'


class CsvFile(TableFile):
    """Comma-separated text (UTF-8) with a header line; blank lines are kept and ignored."""

    delimiter = ","

    def __init__(self, content: bytes) -> None:
        try:
            self._text = content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"must be UTF-8 text, but byte {error.start} is not; convert the file") from error
        self._field = re.compile(_FIELD.format(self.delimiter))
        header = next(self._rows(), None)
        if header is None:
            raise DataError("needs a header line with the names of the columns, and is empty; add one")
        self.names = [_unquoted(self._text[start:stop]) for start, stop in header]

    def numbers(self, columns: Sequence[int], cells: Cells) -> np.ndarray:
        """See TableFile."""
        numbers, others = array("d"), dict[str, tuple[str, int]]()
        for i, row in enumerate(self._body()):
            for index in columns:
                text = _unquoted(self._text[slice(*row[index])])
                try:
                    numbers.append(cells.number(text.strip()))
                except ValueError:
                    others.setdefault(self.names[index], (text, i))
        if others:
            raise NotNumericError({name: others[name] for name in self.names if name in others})
        return np.array(numbers).reshape(-1, len(columns))

    def filled(self, x: np.ndarray, missing: np.ndarray) -> bytes:
        """See TableFile; numbers are written with 7 digits, the precision of a model."""
        parts, end = [], 0
        for i, row in enumerate(self._body()):
            for j in np.flatnonzero(missing[i]):
                start, stop = row[j]
                parts += [self._text[end:start], f"{x[i, j]:.7g}"]
                end = stop
        return "".join([*parts, self._text[end:]]).encode()

    def _body(self) -> Iterator[list[tuple[int, int]]]:
        """Yields the rows below the header."""
        d = len(self.names)
        rows = self._rows()
        next(rows)
        for i, row in enumerate(rows, start=1):
            if len(row) != d:
                raise DataError(f"needs {d} cells in each row, as in its header, got {len(row)} in row {i}")
            yield row

    def _rows(self) -> Iterator[list[tuple[int, int]]]:
        """Yields the start and end of each field, for every line that is not blank."""
        row: list[tuple[int, int]] = []
        for match in self._field.finditer(self._text, pos=int(self._text.startswith("\ufeff"))):
            row.append(match.span(1))
            if match[2] != self.delimiter:
                if len(row) > 1 or match[1].strip():
                    yield row
                row = []


class TsvFile(CsvFile):
    """Tab-separated text."""

    delimiter = "\t"


def _unquoted(field: str) -> str:
    stripped = field.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] == '"':
        return stripped[1:-1].replace('""', '"')
    return field
