"""The table: every row, in the order of the report."""

from __future__ import annotations

from tests.chaos import (
    races,
    rolling,
    rows_failover,
    rows_files,
    rows_names,
    rows_process,
    rows_starved,
    rows_store,
    rows_store_writes,
    rows_upstream,
    soak,
)
from tests.chaos.stage import Row

ROWS: list[Row] = [
    *rows_upstream.ROWS,
    *rows_names.ROWS,
    *rows_store.ROWS,
    *rows_store_writes.ROWS,
    *rows_failover.ROWS,
    *rows_process.ROWS,
    *rows_files.ROWS,
    *races.ROWS,
    *rolling.ROWS,
    *rows_starved.ROWS,
    *soak.ROWS,
]
