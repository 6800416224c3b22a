"""Known vulnerabilities of the pinned packages; no answer is not taken for a good one.

pip-audit itself ends well where the database could not be asked about a package. Here the exit
status is 0 where every package was looked up and none is known to be vulnerable, 1 where one is,
and 2 where any could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys

TOOL = "pip-audit==2.10.1"


def main(uv: str, constraints: str) -> int:
    """Ask, print what came of it, and return the exit status."""
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
            "advisory database (pypi.org) has to be reached, or allowed",
            file=sys.stderr,
        )
        return 1 if bad else 2
    print(f"audit: {len(found)} packages looked up, {len(bad)} with known vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
