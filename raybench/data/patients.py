"""Which images belong together. What is made here of patients' ids is numbers, in memory alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from raybench.types import XrayRecord


def patient_groups(records: Sequence[XrayRecord]) -> NDArray[np.int64]:
    """A number for each record, int64 `[n]`: equal for images of one patient.

    An image whose patient is not known is a group of its own. Numbers follow the order of the
    records, so that they say nothing of a patient's id.
    """
    numbers: dict[Hashable, int] = {}
    keys = ((r.image_id,) if r.patient is None else r.patient for r in records)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
