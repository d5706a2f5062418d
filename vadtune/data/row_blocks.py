"""Blocks of rows, so that intermediate results of large tables need little memory."""

from __future__ import annotations

from collections.abc import Iterator

_BLOCK_CELLS = 2**20  # 8 MiB of float64


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yields slices that divide so many rows in order; a single column is not divided.

    numpy adds up the rows of several columns one by one, so that sums over blocks are those over all rows, bit for bit;
    it adds a single column in pairs.
    """
    size = max(1, _BLOCK_CELLS // columns) if columns > 1 else max(1, rows)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
