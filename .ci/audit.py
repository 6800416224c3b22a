"""Known vulnerabilities of the pinned packages; no answer is not taken for a good one.

audit.py UV CONSTRAINTS            asks the network, with pip-audit
audit.py UV CONSTRAINTS FOLDER     looks into a clone of the Python Packaging Advisory Database, for
                                   machines that reach no network

pip-audit itself ends well where the database could not be asked about a package. Here the exit
status is 0 where every package was looked up and none is known to be vulnerable, 1 where one is,
and 2 where any could not be looked up.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

TOOL = "pip-audit==2.10.1"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)")


def main(uv: str, constraints: str, folder: str = "") -> int:
    """Ask, print what came of it, and return the exit status."""
    return look_up(Path(folder), pins(Path(constraints))) if folder else ask(uv, constraints)


def ask(uv: str, constraints: str) -> int:
    """By pip-audit, over the network."""
    command = [uv, "tool", "run", "--from", TOOL, "pip-audit", "--requirement", constraints]
    command += ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"audit: NOT DONE: {TOOL} gave no verdict ({last})", file=sys.stderr)
        return 2
    skipped = [one["name"] for one in found if "skip_reason" in one]
    bad = [one for one in found if one.get("vulns")]
    for one in bad:
        ids = ", ".join(
            f"{v['id']} (mended in {', '.join(v['fix_versions']) or 'no version yet'})"
            for v in one["vulns"]
        )
        print(f"{one['name']} {one['version']}: {ids}")
    if skipped or not found:
        print(
            f"audit: NOT DONE: {len(skipped)} of {len(found)} packages could not be looked up; the "
            "advisory database has to be reached, or a clone of it named: make audit "
            "ADVISORIES=FOLDER",
            file=sys.stderr,
        )
        return 1 if bad else 2
    print(f"audit: {len(found)} packages looked up, {len(bad)} with known vulnerabilities")
    return 1 if bad else 0


def pins(constraints: Path) -> list[tuple[str, str]]:
    """Names, as the index writes them, and versions; a package may have one a Python version."""
    found = (_PIN.match(line) for line in constraints.read_text().splitlines())
    return [(re.sub(r"[-_.]+", "-", m[1]).lower(), m[2]) for m in found if m is not None]


def look_up(folder: Path, pinned: list[tuple[str, str]]) -> int:
    """In a clone of the database: `vulns/<package>/<id>.yaml`, in the OSV format."""
    vulns = folder / "vulns"
    if not any(vulns.glob("*/*.yaml")) or not pinned:
        print(
            f"audit: NOT DONE: {folder}: expected a clone of the Python Packaging Advisory "
            "Database (pypa/advisory-database), with vulns/<package>/<id>.yaml in it, and pins",
            file=sys.stderr,
        )
        return 2
    newest, bad = "", 0
    for name, version in pinned:
        ids = []
        for path in sorted((vulns / name).glob("*.yaml")):
            said = yaml.safe_load(path.read_text(encoding="utf-8"))
            newest = max(newest, str(said.get("modified", "")))
            if "withdrawn" not in said and any(hits(one, name, version) for one in named(said)):
                ids.append(str(said["id"]))
        if ids:
            bad += 1
            print(f"{name} {version}: {', '.join(ids)}")
    print(
        f"audit: {len(pinned)} packages looked up in {folder}, whose last word on one of them is "
        f"of {newest[:10] or 'never'}: {bad} with known vulnerabilities"
    )
    return 1 if bad else 0


def named(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What an advisory says is affected."""
    yield from said.get("affected", [])


def hits(affected: dict[str, Any], name: str, version: str) -> bool:
    """Whether a version is listed, or lies in a range of versions (OSV schema 1.6, evaluation)."""
    package = affected.get("package", {})
    if package.get("ecosystem") != "PyPI" or package.get("name", "").lower() != name:
        return False
    if version in affected.get("versions", []):
        return True
    ranges = (r for r in affected.get("ranges", []) if r["type"] == "ECOSYSTEM")
    return any(_within(each["events"], Version(version)) for each in ranges)


def _within(events: list[dict[str, str]], version: Version) -> bool:
    found = False
    order = {"introduced": 0, "fixed": 1, "last_affected": 1}
    marks = [(Version(v), order[kind], kind) for e in events for kind, v in e.items()]
    for mark, _, kind in sorted((m for m in marks), key=lambda m: m[:2]):
        if kind == "introduced" and version >= mark:
            found = True
        elif (kind == "fixed" and version >= mark) or (kind == "last_affected" and version > mark):
            found = False
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
