"""Numbers in sentences."""

from __future__ import annotations


def counted(n: float, one: str, many: str | None = None) -> str:
    """`1 hour`, `0.5 hours`, `1,000 forward passes`.

    Args:
        one: what a single one is called.
        many: what several are called; None: the same with an s.
    """
    number = f"{n:,}" if isinstance(n, int) else f"{n:g}"
    return f"{number} {one if n == 1 else many or f'{one}s'}"
