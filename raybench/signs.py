"""Which part of a signed attribution map is looked at."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raybench.types import Sign

Signed = TypeVar("Signed", bound=np.floating[Any])


def oriented(values: NDArray[Signed], sign: Sign) -> NDArray[Signed]:
    """The part of signed attributions that a salient mask is made from, of the same shape.

    Args:
        values: a map `[H, W]`, or the weights of its superpixels.
        sign: `both` leaves it as it is (the study: what speaks against the class is at the bottom
            of the scale), `for` sets what speaks against the class to 0, `against` what speaks for
            it and turns the rest round, `absolute` takes either as salient.
    """
    if sign == "both":
        return values
    if sign == "absolute":
        return np.asarray(np.abs(values))
    part = values if sign == "for" else -values
    return np.asarray(np.maximum(part, values.dtype.type(0)))
