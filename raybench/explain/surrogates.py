"""The family of surrogates: what is fitted to the answers, and what a superpixel's weight means.

Each fits the same rows; the mathematics is in `surrogate`. Ridge and Bayesian ridge take all rows
with lime's kernel. GLIME and KernelSHAP ask what the weights would be if patterns were drawn by a
law of their own, over the superpixels that hold anything; rows that another law drew are weighted
by the ratio of the two, so that the design that draws by that very law wastes none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raybench.explain.designs import KEEP_SHARE, Design
from raybench.explain.laws import bernoulli_law, shapley_law
from raybench.explain.rows import Drawn, Rows, effective_size, reweighted
from raybench.explain.surrogate import (
    Fit,
    Floats,
    LocalFit,
    bayesian_ridge,
    cosine_distance,
    jackknife,
    kernel,
    ridge,
    shapley_values,
    standard_error,
)
from raybench.settings import Choice, Range, Settings, named


class Surrogate(Settings):
    """What every surrogate has."""

    needs_nothing: ClassVar[bool] = False
    """Whether the answer with all superpixels switched off is part of the fit."""

    matching: ClassVar[Design | None] = None
    """The design that draws by the surrogate's own law; None: lime's kernel suits them all."""

    @property
    def keep_share(self) -> float:
        """What the design `bernoulli` keeps where nobody says otherwise."""
        return KEEP_SHARE

    @abstractmethod
    def fit(self, rows: Rows, uncertain: bool = True) -> LocalFit:
        """Fit.

        Args:
            uncertain: whether uncertainty and deltas are wanted; they cost more than the fit.
        """


class RidgeSurrogate(Surrogate):
    """lime's: ridge regression, samples weighted by an exponential kernel of cosine distance."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "kernel_width": Range(low=0.05, high=5.0, log=True),
        "alpha": Range(low=1e-3, high=100.0, log=True),
    }

    name: Literal["ridge"] = "ridge"
    kernel_width: float = Field(0.25, gt=0, description="of the exponential kernel")
    alpha: float = Field(1.0, ge=0, description="ridge penalty")

    def fit(self, rows: Rows, uncertain: bool = True) -> LocalFit:
        """Ridge over all rows and superpixels; uncertainty by the jackknife."""
        sample_weights = kernel(cosine_distance(rows.keep), self.kernel_width)
        fit = ridge(rows.keep, rows.answers, sample_weights, self.alpha)
        n_effective = effective_size(sample_weights) / rows.completions
        n, k = rows.keep.shape
        group_size = rows.n_together * rows.completions
        n_groups = -(-n // group_size)
        if not uncertain or n_groups <= 2 or n <= k + group_size:
            return LocalFit(fit.weights, fit.r2, *_unknown(k), n_effective)
        # The unperturbed image leads the design and belongs to no pair.
        order = np.roll(np.arange(n), -rows.completions * rows.n_fixed)
        keep, answers, by = rows.keep[order], rows.answers[order], sample_weights[order]
        deltas = jackknife(keep, answers, by, self.alpha, fit, group_size)
        return LocalFit(fit.weights, fit.r2, standard_error(deltas), deltas, n_effective)


class BayesianRidgeSurrogate(Surrogate):
    """BayLIME's (Zhao et al. 2021) with non-informative priors: a ridge that finds its penalty.

    Samples are weighted as lime weights them, scaled to a mean of 1 an image. The uncertainty is
    the posterior deviation, under noise that is independent and of one size: what the fit does not
    know, not what another seed would give.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "kernel_width": Range(low=0.05, high=5.0, log=True)
    }

    name: Literal["bayesian_ridge"] = "bayesian_ridge"
    kernel_width: float = Field(0.25, gt=0, description="of the exponential kernel")

    def fit(self, rows: Rows, uncertain: bool = True) -> LocalFit:
        """Bayesian ridge over all rows and superpixels."""
        sample_weights = kernel(cosine_distance(rows.keep), self.kernel_width)
        n, k = rows.keep.shape
        n_images = n / rows.completions
        # Rows that stand for one image are one observation between them.
        scaled = sample_weights * (n_images / sample_weights.sum())
        fit, covariance = bayesian_ridge(rows.keep, rows.answers, scaled)
        n_effective = effective_size(sample_weights) / rows.completions
        if not uncertain:
            return LocalFit(fit.weights, fit.r2, *_unknown(k), n_effective)
        variance, axes = np.linalg.eigh(covariance)
        deltas = np.sqrt(np.maximum(variance, 0.0))[:, None] * axes.T
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        return LocalFit(fit.weights, fit.r2, deviation, deltas, n_effective)


class GlimeSurrogate(Surrogate):
    """GLIME-Binomial (Tan, Tian and Li 2023): lime's kernel moved into what is drawn.

    lime's weight `exp((kept - K) / sigma^2)` (squared distance, a superpixel off counting 1) times
    fair coins is a law again: coins that keep with probability
    `exp(1 / sigma^2) / (1 + exp(1 / sigma^2))`. The ridge under it is unweighted, so that no
    penalty overrules samples that hardly count. Superpixels that change nothing have weight 0.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "alpha": Range(low=1e-3, high=100.0, log=True)
    }

    name: Literal["glime"] = "glime"
    sigma: float = Field(
        1.0,
        ge=0.3,
        le=100,
        description="locality: a superpixel is kept with probability 1 / (1 + exp(-1 / sigma^2)); "
        "1: 0.73, 0.5: 0.98",
    )
    alpha: float = Field(1.0, ge=0, description="ridge penalty")

    matching: ClassVar[Design | None] = "bernoulli"

    @property
    def keep_share(self) -> float:
        """The probability with which a superpixel is kept."""
        return float(1.0 / (1.0 + np.exp(-1.0 / self.sigma**2)))

    def fit(self, rows: Rows, uncertain: bool = True) -> LocalFit:
        """Ridge over the active superpixels; uncertainty by the jackknife, 0 where all is known."""
        k = int(rows.active.sum())
        drawn = reweighted(rows, bernoulli_law(k, self.keep_share))
        fit = Fit(np.zeros(k), float(rows.answers[0]), 1.0)
        if len(drawn.weights):  # nothing is drawn yet where only the first answer is there
            fit = ridge(drawn.keep, drawn.answers, drawn.weights, self.alpha)
        told = uncertain and drawn.tells(rows.n_together)
        deltas = np.zeros((0, k))
        if told:
            group = rows.n_together
            deltas = jackknife(drawn.keep, drawn.answers, drawn.weights, self.alpha, fit, group)
        return _of_active(rows, drawn, fit, deltas, uncertain)


class KernelShapSurrogate(Surrogate):
    """KernelSHAP's (Lundberg and Lee 2017): Shapley values, which add up to the answer.

    Least squares by the Shapley kernel over the active superpixels, through the answers with all
    of them and with none; the weights sum to the difference of the two. Superpixels that change
    nothing have the value 0, as they have by definition. Where all patterns are asked (8 active
    superpixels or fewer) of one fill the values are exact, and their uncertainty is 0.
    """

    name: Literal["kernel_shap"] = "kernel_shap"

    needs_nothing: ClassVar[bool] = True
    matching: ClassVar[Design | None] = "shapley"

    def fit(self, rows: Rows, uncertain: bool = True) -> LocalFit:
        """Constrained least squares over the active superpixels; jackknife over what was drawn."""
        k = int(rows.active.sum())
        everything = float(rows.answers[0])
        if not k:
            fit = Fit(np.zeros(0), everything, 1.0)
            return _of_active(rows, Drawn.none(), fit, np.zeros((0, 0)), uncertain)
        drawn = reweighted(rows, shapley_law(k))
        told = uncertain and drawn.tells(rows.n_together)
        fit, deltas = shapley_values(
            drawn.keep,
            drawn.answers,
            drawn.weights,
            everything,
            _answer_to_nothing(rows),
            rows.n_together if told else 0,
        )
        return _of_active(rows, drawn, fit, deltas, uncertain)


if TYPE_CHECKING:
    AnySurrogate = RidgeSurrogate | BayesianRidgeSurrogate | GlimeSurrogate | KernelShapSurrogate
else:
    AnySurrogate = named(
        RidgeSurrogate | BayesianRidgeSurrogate | GlimeSurrogate | KernelShapSurrogate,
        default="ridge",
    )
"""What the setting `surrogate` parses into; keys without a name are those of `ridge`."""


def _answer_to_nothing(rows: Rows) -> float:
    if rows.nothing is not None:
        return rows.nothing
    asked = ~rows.keep[:, rows.active].any(axis=1)
    return float(rows.answers[asked.argmax()]) if asked.any() else float("nan")


def _of_active(rows: Rows, drawn: Drawn, fit: Fit, deltas: Floats, uncertain: bool) -> LocalFit:
    """A fit of the active superpixels as one of all; the others' weights are 0 beyond doubt."""
    k = len(rows.active)
    weights, uncertainty = np.zeros(k), np.zeros(k)
    weights[rows.active] = fit.weights
    if len(deltas):
        uncertainty[rows.active] = standard_error(deltas)
    elif not (uncertain and drawn.complete):
        uncertainty[rows.active] = np.inf
    else:
        deltas = np.zeros((1, int(rows.active.sum())))
    whole = np.zeros((len(deltas), k))
    whole[:, rows.active] = deltas
    return LocalFit(weights, fit.r2, uncertainty, whole, drawn.n_effective)


def _unknown(k: int) -> tuple[Floats, Floats]:
    return np.full(k, np.inf), np.zeros((0, k))
