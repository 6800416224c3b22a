"""What a sweep says of shortcuts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from raybench.data import Phantom
from raybench.data.preprocess import Preprocess
from raybench.data.scan import scan
from raybench.storage import Storage
from raybench.studies.shortcut_check import warn_of_shortcuts
from raybench.tracking.events import EventLog
from raybench.types import SPLITS


@pytest.mark.parametrize("marker", [True, False])
@pytest.mark.parametrize("masking", [True, False])
def test_the_warning(
    tmp_path: Path, marker: bool, masking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    phantoms = Phantom(name="phantom", n_train=16, n_val=8, n_test=1, size=64, marker=marker)
    found = scan(phantoms, SPLITS, "stop", needs_lung_masks=True)
    events = EventLog(Storage(str(tmp_path)))
    with caplog.at_level(logging.WARNING):
        warn_of_shortcuts(events, found, Preprocess(lung_masking=masking))
    noted = events.read()
    (check,) = (e for e in noted if e["kind"] == "shortcut_check")
    by_family = {f["family"]: f for f in check["families"]}
    assert by_family["border and corners"]["is_shortcut"] is marker
    assert by_family["lung masks"]["val_balanced_accuracy"] == by_family["lung masks"]["chance"]
    messages = [e["message"] for e in noted if e["kind"] == "warning"]
    assert [r.getMessage() for r in caplog.records] == messages
    assert len(messages) == marker
    if marker:
        score = by_family["border and corners"]["val_balanced_accuracy"]
        assert f"chance 0.33): border and corners {score:.2f} (p 0.0001)" in messages[0]
        cure = "keep that on" if masking else "set preprocess.lung_masking"
        assert cure in messages[0]
        assert len(messages[0]) < 600, "the summary shows it whole"
    assert "phantom-0" not in str(noted), "no patient is named"
