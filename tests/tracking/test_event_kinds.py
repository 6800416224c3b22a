"""The kinds of events that are written, held against the lists of them. Under a second."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from raybench.tracking import events

ROOT = Path(__file__).resolve().parents[2]


def written(source: str) -> Iterator[str]:
    """First arguments of `....events.append(...)`, both of a choice between two."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not re.search(
            r"(^|[._])events\.append$", ast.unparse(node.func)
        ):
            continue
        (kind, *_) = node.args
        for one in (kind.body, kind.orelse) if isinstance(kind, ast.IfExp) else (kind,):
            assert isinstance(one, ast.Constant), f"a kind that is not plain: {ast.unparse(node)}"
            yield str(one.value)


def test_every_kind_that_is_written_is_listed_in_the_module_and_in_the_docs() -> None:
    files = set((ROOT / "raybench").rglob("*.py")) - {Path(events.__file__)}  # it reads a list
    found = {kind for file in files for kind in written(file.read_text())}
    assert {"epoch", "sweep_resumed", "warning", "compared", "sweep_finished"} <= found

    assert events.__doc__ is not None
    heads = re.findall(r"^- (.*?)(?::|$)|; (`stage_finished`)", events.__doc__, re.MULTILINE)
    listed = {kind for head in heads for part in head for kind in re.findall(r"`(\w+)`", part)}
    assert listed == found

    docs = (ROOT / "docs" / "how-it-works.md").read_text()
    table = docs.split("| kind | fields |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {kind for cell in first for kind in re.findall(r"`(\w+)`", cell)} == found
