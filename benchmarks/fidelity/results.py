"""What was measured, by the rows of this table."""

from __future__ import annotations

from comparison import results
from fidelity.rows import ROWS


class Results(results.Results):
    """Entries by row, and why rows were not measured."""

    rows = ROWS
