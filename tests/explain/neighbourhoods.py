"""Neighbourhoods of tiles, and models of them, whose fits the surrogates' tests look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from raybench.explain.designs import Design
from raybench.explain.neighbourhood import Neighbourhood, fit_of
from raybench.explain.perturbation import Keep
from raybench.explain.surrogate import Floats, LocalFit
from raybench.explain.surrogates import Surrogate

Answer = Callable[[Keep], Floats]


def tiles(k: int) -> np.ndarray:
    return np.repeat(np.arange(k, dtype=np.int32), 4)[None].repeat(4, axis=0)


def drawn(
    design: Design,
    n: int,
    active: np.ndarray,
    seed: int = 0,
    keep_share: float = 0.731,
    n_fills: int = 1,
) -> Neighbourhood:
    """A neighbourhood of as many tiles as `active` is long; those it leaves out are black."""
    image = (active[tiles(len(active))] * 200).astype(np.uint8)
    completions = 4 if design == "completed" else 1
    black = np.zeros((n_fills, *image.shape), np.uint8)
    labels = tiles(len(active))
    return Neighbourhood.draw(design, n, image, black, labels, seed, completions, True, keep_share)


def fitted(
    surrogate: Surrogate,
    design: Design,
    answer: Answer,
    active: np.ndarray,
    n: int = 448,
    seed: int = 0,
    uncertain: bool = True,
) -> LocalFit:
    seen = drawn(design, n, active, seed, surrogate.keep_share)
    y = answer(seen.keep[seen.first][:, active])
    nothing = float(answer(np.zeros((1, int(active.sum())), bool))[0])
    return fit_of(seen, y[:, None], 0, surrogate, nothing, uncertain)


def with_pairs(k: int, size: float, seed: int = 0) -> Answer:
    """Effects of single superpixels, of pairs, and of one that three must share."""
    rng = np.random.default_rng(seed)
    linear, pairs = rng.normal(size=k), size * rng.normal(size=(k, k))

    def answer(keep: Keep) -> Floats:
        x = keep * 1.0
        return 0.3 + x @ linear + np.einsum("ni,ij,nj->n", x, pairs, x) + size * x[:, :3].prod(1)

    return answer


class Shares(nn.Module):
    """Three classes; the probability moves with single regions, pairs and all together."""

    def __init__(self, labels: np.ndarray, k: int) -> None:
        super().__init__()
        masks = np.stack([labels == i for i in range(k)]).reshape(k, -1)
        self.masks = torch.from_numpy(masks.T / masks.sum(1)).float()
        torch.manual_seed(1)
        self.head = nn.Sequential(nn.Linear(k, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(3 * (x[:, 0].flatten(1) @ self.masks))
