"""The published figures in the run folder, where the sweep is on the study's own data."""

from __future__ import annotations

from raybench.report.published import NAME, is_the_studys, published
from raybench.studies.context import Context


def write_published(context: Context) -> bool:
    """Write `published.csv`, and say whether: on other data there is nothing to hold it against."""
    if context.other is not None or not is_the_studys(context.dataset, context.records):
        return False
    context.run.write_csv(NAME, published(len(context.dataset.classes)))
    return True
