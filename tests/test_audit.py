"""The audit without a network: which versions an advisory hits, and what is no answer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def advisory(root: Path, name: str, **said: Any) -> None:
    affected = {"package": {"ecosystem": said.pop("ecosystem", "PyPI"), "name": name}}
    affected |= {key: said.pop(key) for key in ("versions", "ranges") if key in said}
    folder = root / "vulns" / name
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"id": f"A-{name}", "affected": [affected], "modified": "2026-01-02T00:00:00Z"} | said
    (folder / f"A-{len(list(folder.iterdir()))}.yaml").write_text(yaml.safe_dump(whole))


def ranged(*events: dict[str, str]) -> list[dict[str, Any]]:
    return [{"type": "ECOSYSTEM", "events": list(events)}]


@pytest.mark.parametrize(
    ("version", "is_hit"),
    [("0.9", True), ("1.2", False), ("1.10", True), ("2.0rc1", True), ("2.0", False)],
)
def test_a_range_ends_where_it_was_mended(audit: Any, version: str, is_hit: bool) -> None:
    two = ranged({"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "1.3"}, {"fixed": "2.0"})
    affected = {"package": {"ecosystem": "PyPI", "name": "a"}, "ranges": two}
    assert audit.hits(affected, "a", version) is is_hit
    last = {"ranges": ranged({"introduced": "1.3"}, {"last_affected": "1.10"})}
    assert audit.hits(affected | last, "a", version) is (version == "1.10")


def test_what_is_hit_is_named(
    audit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advisory(tmp_path, "listed", versions=["1.0", "1.1"])
    advisory(tmp_path, "open-ended", ranges=ranged({"introduced": "3"}))
    advisory(tmp_path, "withdrawn", versions=["1.0"], withdrawn="2026-01-01T00:00:00Z")
    advisory(tmp_path, "elsewhere", versions=["1.0"], ecosystem="npm")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        "# comment\nListed==1.1\nopen_ended==3.1  # why\nwithdrawn==1.0\nelsewhere==1.0\nnone==1\n"
    )
    assert audit.main("uv", str(constraints), str(tmp_path)) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["listed 1.1: A-listed", "open-ended 3.1: A-open-ended"]
    assert "5 packages looked up" in said[2]
    assert said[2].endswith("of 2026-01-02: 2 with known vulnerabilities")
    constraints.write_text("listed==1.2\n")
    assert audit.main("uv", str(constraints), str(tmp_path)) == 0


def test_no_database_is_no_answer(
    audit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(sys.executable, str(ROOT / "constraints.txt"), str(tmp_path)) == 2
    assert "NOT DONE" in capsys.readouterr().err


def test_every_pinned_package_is_looked_up(audit: Any) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert len(audit.pins(ROOT / "constraints.txt")) == len(pinned) > 100
