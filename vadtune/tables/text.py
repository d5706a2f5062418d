"""Tables as text, read in blocks of whole rows.

A block is parsed by pyarrow, whose numbers are those of Python's ``float``, bit for bit. What pyarrow refuses or might
read in another way is parsed by a regular expression, which is some 20 times slower and says what is wrong.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.reading import open_regular
from vadtune.tables.base import MOST_COLUMNS, Cells, Fill, NotNumericError, TableFile, check_columns_count

# Possessive (++, *+): the pattern never goes back into a long quoted field, which would take gigabytes.
_FIELD = r'("(?:[^"]++|"")*+"[^{0}\r\n]*|[^{0}\r\n]*)({0}|\r\n|\n|\r|\Z)'
_PLAIN_QUOTED = r'(?:(?<=[{0}\r\n])|\A)"[^"{0}\r\n]*"(?=[{0}\r\n]|\Z)'
_BOM = "\ufeff".encode()
_FIRST_BYTES = 2**16  # of the file, to find the header
_BLOCK_BYTES = 2**23  # of text to read at once
_MOST_ROW_BYTES = 2**22
_FILL_BYTES = 2**25  # of text to fill at once: models infer many rows faster

_Spans = list[tuple[int, int]]
"""Start and end of each field of a row."""


class _Block(NamedTuple):
    """Whole rows of a file.

    Attributes:
        content: Their bytes.
        offset: Position in the file.
    """

    content: bytes
    offset: int

    def text(self) -> str:
        """Returns the rows as text.

        Raises:
            DataError: They are not UTF-8.
        """
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            byte = self.offset + error.start
            raise DataError(f"must be UTF-8 text, but byte {byte} is not; convert the file") from error


class CsvFile(TableFile):
    """Comma-separated text (UTF-8) with a header line; blank lines are kept and ignored."""

    delimiter = ","

    def __init__(self, path: Path) -> None:
        self.path = path
        self._field = re.compile(_FIELD.format(self.delimiter))
        self._plain_quoted = re.compile(_PLAIN_QUOTED.format(self.delimiter).encode())
        for content, offset in self._whole_rows(0, _FIRST_BYTES):
            bom = len(_BOM) if offset == 0 and content.startswith(_BOM) else 0
            text = _Block(content[bom:], offset + bom).text()
            header = next(self._rows(text), None)
            if header is None:  # blank lines only
                continue
            self.names = [_unquoted(text[start:stop]) for start, stop in header]
            ends = self._field.match(text, header[-1][0])
            assert ends is not None, "the pattern of a field matches everywhere"
            self._body = offset + bom + len(text[: ends.end()].encode())
            self.rows = self._estimated_rows(content, self._body - offset)
            return
        raise DataError("needs a header line with the names of the columns, and is empty; add one")

    def blocks(self, columns: Sequence[int], cells: Cells) -> Iterator[np.ndarray]:
        """See TableFile."""
        others: dict[str, tuple[str, int]] = {}
        first = 0
        for block in self._whole_rows(self._body, _BLOCK_BYTES):
            numeric = [index for index in columns if self.names[index] not in others]
            try:
                x = self._numbers(block, numeric, cells, first)
                first += len(x)
            except NotNumericError as error:  # the message names all such columns
                others |= error.others
                if len(others) == len(columns):
                    break
                first += sum(1 for _ in self._rows(block.text()))
                continue
            if not others:
                yield x
        if others:
            raise NotNumericError({name: others[name] for name in self.names if name in others})

    def copy_filled(self, out: Path, columns: Sequence[int], cells: Cells, fill: Fill) -> None:
        """See TableFile; numbers are written with 7 digits, the precision of a model."""
        table_order, first = np.argsort(columns), 0
        with out.open("wb") as file:
            with open_regular(self.path) as source:
                file.write(source.read(self._body))
            for block in self._whole_rows(self._body, _FILL_BYTES):
                x_nan = self._numbers(block, columns, cells, first)
                first += len(x_nan)
                missing = np.isnan(x_nan)[:, table_order]
                file.write(self._filled(block, fill(x_nan)[:, table_order], missing))

    def _estimated_rows(self, first: bytes, start: int) -> int:
        """Returns the number of rows of the file, from the length of those in its first bytes; rather too many."""
        known = first.count(b"\n", start)
        length = max(len(self.names), 0.95 * (len(first) - start) / known if known else 0)
        return int((self.path.stat().st_size - self._body) / length) + 1

    def _whole_rows(self, start: int, size: int) -> Iterator[_Block]:
        """Yields the file from a position on, in blocks of about ``size`` bytes that end where a row ends."""
        with open_regular(self.path) as file:
            file.seek(start)
            rest, more = b"", True
            while more:
                chunk = file.read(max(size, len(rest)))
                more = bool(chunk)
                content = rest + chunk
                end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1 if more else len(content)
                rest = content
                if end and not (more and self._has_open_quote(content[:end])):
                    yield _Block(content[:end], start)
                    start, rest = start + end, content[end:]
                elif len(rest) > size + _MOST_ROW_BYTES:
                    raise DataError(
                        f"has rows of at most {_MOST_ROW_BYTES} bytes, got more behind byte {start}; close its quotes"
                    )

    def _has_open_quote(self, content: bytes) -> bool:
        """Returns whether a quoted field may go on behind the end of the content."""
        if self._is_plain(content):
            return False
        text = content.decode(errors="replace")
        fields = (match[1] for match in self._field.finditer(text))
        return any(field.startswith('"') and field.count('"') % 2 for field in fields)

    def _is_plain(self, content: bytes) -> bool:
        """Returns whether quotes enclose whole fields only, without delimiters, line ends or quotes in them."""
        quotes = content.count(b'"') if b'"' in content else 0
        return quotes == 0 or quotes == 2 * sum(1 for _ in self._plain_quoted.finditer(content))

    def _numbers(self, block: _Block, columns: Sequence[int], cells: Cells, first: int) -> np.ndarray:
        """Returns columns of a block as float64 (b, d); ``first`` is the index of its first row, for messages."""
        x = self._numbers_by_arrow(block.content, columns, cells)
        if x is not None:
            if not block.content.isascii():
                block.text()
            return x
        text, numbers, others, rows = block.text(), array("d"), dict[str, tuple[str, int]](), first
        for rows, row in enumerate(self._whole(text, first), start=first + 1):
            for index in columns:
                field = _unquoted(text[slice(*row[index])])
                try:
                    numbers.append(cells.number(field.strip()))
                except ValueError:
                    others.setdefault(self.names[index], (field, rows - 1))
        if others:
            raise NotNumericError({name: others[name] for name in self.names if name in others})
        return np.array(numbers).reshape(rows - first, len(columns))

    def _numbers_by_arrow(self, content: bytes, columns: Sequence[int], cells: Cells) -> np.ndarray | None:
        """Returns columns of a block as float64 (b, d); None where only the slow way is sure to read them right."""
        import pyarrow as pa
        from pyarrow import csv

        # Lines of a single column may be blank; fast_float reads nan(...) as a number. Looking for one byte is fast.
        strange = (b"(" in content and (b"n(" in content or b"N(" in content)) or content.startswith(_BOM)
        if len(self.names) == 1 or not columns or strange or not self._is_plain(content):
            return None
        names = [str(index) for index in range(len(self.names))]
        wanted = [names[index] for index in columns]
        try:
            table = csv.read_csv(
                pa.BufferReader(content),
                read_options=csv.ReadOptions(column_names=names),
                parse_options=csv.ParseOptions(
                    delimiter=self.delimiter, quote_char='"' if b'"' in content else False, newlines_in_values=False
                ),
                convert_options=csv.ConvertOptions(
                    check_utf8=False,
                    column_types=dict.fromkeys(wanted, pa.float64()),
                    null_values=[pad + text for text in sorted(cells.texts) for pad in ("", " ")],
                    include_columns=wanted,
                ),
            )
        except pa.ArrowInvalid:
            return None
        return np.stack([cells.of(column.to_numpy()) for column in table.columns], axis=1)

    def _filled(self, block: _Block, x: np.ndarray, missing: np.ndarray) -> bytes:
        """Returns the bytes of a block with missing cells taken from ``x``; both arrays (b, d) in the table's order."""
        ends = np.cumsum(missing.sum(1)).tolist()  # of the missing cells of each row among all
        columns = np.nonzero(missing)[1].tolist()
        texts = [f"{value:.7g}" for value in x[missing].tolist()]
        if self._is_plain(block.content):
            lines, separator = block.content.splitlines(keepends=True), self.delimiter.encode()
            rows = [number for number, line in enumerate(lines) if line.rstrip(b"\r\n")]
            if len(rows) == len(missing) and len(self.names) > 1:
                start = 0
                for number, end in zip(rows, ends, strict=True):
                    if start < end:
                        row = lines[number].rstrip(b"\r\n")
                        fields = row.split(separator)
                        for column, text in zip(columns[start:end], texts[start:end], strict=True):
                            fields[column] = text.encode()
                        lines[number] = separator.join(fields) + lines[number][len(row) :]
                        start = end
                return b"".join(lines)
        whole, parts, written, start = block.text(), list[str](), 0, 0
        for spans, end in zip(self._rows(whole), ends, strict=True):
            for column, text in zip(columns[start:end], texts[start:end], strict=True):
                parts += [whole[written : spans[column][0]], text]
                written = spans[column][1]
            start = end
        return "".join([*parts, whole[written:]]).encode()

    def _whole(self, text: str, first: int) -> Iterator[_Spans]:
        """Yields the rows of a text, which must have as many fields as the header."""
        d = len(self.names)
        for i, row in enumerate(self._rows(text), start=first + 1):
            if len(row) != d:
                raise DataError(f"needs {d} cells in each row, as in its header, got {len(row)} in row {i}")
            yield row

    def _rows(self, text: str) -> Iterator[_Spans]:
        """Yields the start and end of each field, for every line that is not blank."""
        row: _Spans = []
        for match in self._field.finditer(text):
            row.append(match.span(1))
            if len(row) > MOST_COLUMNS:
                check_columns_count(text.count(self.delimiter, row[0][0], text.find("\n", match.end())) + 1)
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
