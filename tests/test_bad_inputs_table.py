"""Every bad input of the table is used rightly or refused by name, and the docs say the same."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_inputs_table import CASES, DOCS, USED, Case, page, said


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """A read that never ends ends the session, with a traceback that shows where."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("case", CASES, ids=[f"{c.group}: {c.title}" for c in CASES])
def test_it_is_used_or_refused_by_name(case: Case, tmp_path: Path) -> None:
    text = said(case, tmp_path)
    if case.words == (USED,):
        assert text == USED
        assert case.note
    else:
        assert text != USED
        assert all(word in text for word in case.words), text
    assert "hunter2" not in text
    assert "RAYBENCH_EVIL" not in os.environ


def test_the_page_is_current() -> None:
    assert len(CASES) >= 40
    assert DOCS.read_text(encoding="utf-8") == page(), "run `make bad-inputs`"
