"""`python -m raybench.report RUN...`: see `raybench.cli.report`."""

from __future__ import annotations

import sys

from raybench.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
