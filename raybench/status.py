"""`python -m raybench.status RUN`: see `raybench.cli.status`."""

from __future__ import annotations

import sys

from raybench.cli.status import main

if __name__ == "__main__":
    sys.exit(main())
