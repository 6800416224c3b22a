"""What explanations are held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raybench.explain.regions import Labels
from raybench.scoring.cuts import Place
from raybench.studies.context import Context
from raybench.types import SPLITS, Mask, Split


@dataclass(frozen=True, slots=True)
class Truth:
    """Masks of one image at its own resolution, bool `[H, W]`, and its class.

    Attributes:
        regions: superpixels `[h, w]`, where a threshold rule ranks them.
    """

    infection: Mask
    lungs: Mask | None
    label: str
    regions: Labels | None = None

    @property
    def place(self) -> Place:
        """What a cut may see of it."""
        return Place(self.lungs, self.regions)


def load_truths(context: Context, splits: Iterable[Split] = SPLITS) -> dict[str, Truth]:
    """Of every image of the splits that is explained, by its id."""
    found: dict[str, Truth] = {}
    for split in splits:
        for record in context.explained.get(split, ()):
            xray = context.source.load(record)
            assert xray.infection_mask is not None
            label = context.class_of(record)
            found[record.image_id] = Truth(xray.infection_mask, xray.lung_mask, label)
    return found
