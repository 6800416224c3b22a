"""Run-length encoded masks as COCO's tools write them, read with suspicion.

pycocotools decodes in C and trusts its input; segmentations come from a file that anyone may have
written. Here nothing is allocated before the runs are known to fill the image exactly.
"""

from __future__ import annotations

import numpy as np

from raybench.errors import BadImageError
from raybench.types import Mask

_MOST_CHUNKS = 7  # of 5 bits each: more than any run of an image that is accepted needs


def runs_of(counts: object, n_pixels: int) -> list[int]:
    """The lengths of the runs, background first, of one mask's compressed string.

    A number is written in chunks of 5 bits, lowest first, each as a character from `0` (48) on,
    32 added where another follows; bit 16 of the last one is the sign. From the fourth number on,
    what is written is the difference to the number two before.

    Args:
        n_pixels: what the runs must add up to.

    Raises:
        BadImageError: they do not, or the text is no such string.
    """
    if not isinstance(counts, str):
        raise BadImageError(f"counts: expected a run-length string, found {type(counts).__name__}")
    runs: list[int] = []
    value, n_chunks, total = 0, 0, 0
    for place, char in enumerate(counts):
        chunk = ord(char) - 48
        if not 0 <= chunk < 64 or n_chunks == _MOST_CHUNKS:
            raise BadImageError(f"counts: character {place + 1} fits no run-length string")
        value |= (chunk & 31) << (5 * n_chunks)
        n_chunks += 1
        if chunk & 32:
            continue
        if chunk & 16:
            value -= 1 << (5 * n_chunks)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        total += runs[-1]
        if runs[-1] < 0 or total > n_pixels:
            raise BadImageError(f"counts: run {len(runs)} leaves the {n_pixels:,} pixels of size")
        value, n_chunks = 0, 0
    if n_chunks or total != n_pixels:
        raise BadImageError(
            f"counts: expected runs of {n_pixels:,} pixels in all, found {total:,}"
            + (" and half a number" if n_chunks else "")
        )
    return runs


def decode(size: object, counts: object, shape: tuple[int, int]) -> Mask:
    """One mask.

    Args:
        size: `[H, W]` as the file has it.
        counts: the compressed string, runs down the columns.
        shape: `(H, W)` of the image that the mask belongs to.

    Returns:
        bool `[H, W]`.

    Raises:
        BadImageError: `size` is not the image's, or see `runs_of`.
    """
    if not isinstance(size, list) or size != list(shape):
        raise BadImageError(
            f"size: expected the image's, {list(shape)} (height, width), found {str(size)[:40]}"
        )
    height, width = shape
    runs = runs_of(counts, height * width)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask: Mask = np.ascontiguousarray(flat.reshape(width, height).T)
    return mask
