"""Whether decoded images are kept on disk: what training does, and what a plan says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raybench.config import SweepConfig
from raybench.data.lungs import is_predicted
from raybench.types import XrayRecord
from raybench.wording import counted


def n_without_lungs(config: SweepConfig, records: Sequence[XrayRecord]) -> int:
    """How many of the records have a predicted lung mask, or will have one."""
    if config.lungs is None:
        return 0
    return sum(r.lung_mask is None or is_predicted(r) for r in records)


def is_cached(config: SweepConfig, records: Sequence[XrayRecord]) -> bool:
    """Whether images that are trained on are decoded once.

    Not where a lung mask of them is predicted: what a cached image was masked with has no name
    then.
    """
    limit = int(config.training.cache_gb * 1e9)
    return limit > 0 and not n_without_lungs(config, records)


def plan_lines(config: SweepConfig, records: Sequence[XrayRecord]) -> Iterator[str]:
    """What a plan says of decoded images.

    Args:
        records: of the data set that classifiers are trained on.
    """
    if config.training.cache_gb == 0:
        return
    learned = [r for r in records if r.split in ("Train", "Val")]
    lacking = n_without_lungs(config, learned)
    if lacking:
        yield (
            f"  decoded by each trial anew: lung masks of {counted(lacking, 'image')} of Train "
            "and Val are predicted (lungs)"
        )
        return
    sizes = sorted({height * width for height, width in (r.size for r in config.recipes)})
    each = " or ".join(f"{len(learned) * pixels / 1e6:,.1f} MB" for pixels in sizes)
    yield (
        f"  decoded once into {config.image_cache}: {each} for each preprocessing, at most "
        f"{config.training.cache_gb:g} GB in all"
    )
