"""docs/families.md says what the table of families and the last full-depth figures say."""

from __future__ import annotations

import json

from tests.parity.families_page import FIGURES, PAGE, page


def test_the_page_is_made_of_the_table_and_the_figures() -> None:
    assert PAGE.read_text() == page(json.loads(FIGURES.read_text())), (
        "run `python -m tests.parity.families_page`"
    )
