"""docs/scaling.md shows what the planner says."""

from __future__ import annotations

from benchmarks.scaling_table import DOCUMENT, table, with_table


def test_the_table_of_the_document_is_what_the_script_writes() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_table(text, table()), "run: python -m benchmarks.scaling_table --write"
