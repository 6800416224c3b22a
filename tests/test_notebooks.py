"""The notebooks run from top to bottom against a small finished sweep, and are kept clean."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = ("compare_runs.ipynb", "explain_your_model.ipynb")


@dataclass(frozen=True)
class Shown:
    """What a notebook printed, and how many pictures it showed."""

    text: str
    n_pictures: int


def executed(*books: tuple[str, dict[str, Any]]) -> list[Shown]:
    """Run notebooks in their own folder, one after the other, their parameters set.

    In one kernel, whose memory is cleared between them: it takes longer to import torch than to run
    them.
    """
    read = []
    for name, parameters in books:
        book = nbformat.read(FOLDER / name, 4)
        (cell,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
        cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
        read.append(book)
    whole = read[0].copy()
    whole.cells = [
        cell for book in read for cell in (*book.cells, nbformat.v4.new_code_cell("%reset -f"))
    ]
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(whole, timeout=300, kernel_name="python3", resources=where).execute()
    return [_shown(book) for book in read]


def _shown(book: nbformat.NotebookNode) -> Shown:
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    text = "".join(o.get("text", "") for o in outputs if o.get("name") == "stdout")
    data = [o.get("data", {}) for o in outputs]
    text += "".join(one.get("text/plain", "") for one in data)
    return Shown(text, sum("image/png" in one for one in data))


def test_all_notebooks_are_known_and_kept_without_outputs() -> None:
    assert sorted(p.name for p in FOLDER.glob("*.ipynb")) == sorted(NAMES)
    for name in NAMES:
        text = (FOLDER / name).read_text()
        book = nbformat.reads(text, 4)
        nbformat.validate(book)
        code = [c for c in book.cells if c.cell_type == "code"]
        assert all(not c.outputs and c.execution_count is None for c in code), name
        assert not re.search(r"/(home|root|tmp|work|Users)/", text), name
        assert set(json.loads(text)["metadata"]) == {"kernelspec", "language_info"}


def test_they_run_against_a_finished_sweep(small_sweep: Path) -> None:
    checkpoint = next((small_sweep / "checkpoints").glob("*.safetensors"))
    compared, explained = executed(
        ("compare_runs.ipynb", {"RUNS": [str(small_sweep)]}),
        ("explain_your_model.ipynb", {"CHECKPOINT": str(checkpoint)}),
    )
    assert compared.n_pictures == 4, "curves, bars, infection maps, the scatter"
    for piece in ("runs: tiny", "iou_test/lime.val", "above_whole_lung", "test_efficientnet"):
        assert piece in compared.text
    assert len(re.findall(r"\(one test, not corrected\)", compared.text)) == 2
    assert explained.n_pictures == 2, "the maps, and LIME's weights"
    for piece in (checkpoint.name, "kernel_shap", "grad_cam", "outside_lungs", "COVID-19"):
        assert piece in explained.text


@pytest.mark.slow
def test_explain_your_model_as_it_stands() -> None:
    (shown,) = executed(("explain_your_model.ipynb", {}))
    assert shown.n_pictures == 2
    accuracy = re.search(r"trained on phantoms just now; accuracy on Val (\d\.\d\d)", shown.text)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.85
