"""Whether and of what an ensemble is made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raybench.settings import Settings


class Ensemble(Settings):
    """The mean of several trials' probabilities, as one more classifier."""

    of: Literal["best", "all"] = Field(
        "best",
        description="its members: best (the best trial of each backbone) or all (every trial that "
        "leaves a checkpoint)",
    )
    top: int | None = Field(
        None,
        ge=2,
        description="of these so many, by accuracy on Val, then by loss; null: all of them",
    )

    def n_members(self, n_backbones: int, trials_per_backbone: int) -> int:
        """How many members it has where no trial fails."""
        n = n_backbones * (1 if self.of == "best" else trials_per_backbone)
        return n if self.top is None else min(n, self.top)

    def problem(self, n_backbones: int, trials_per_backbone: int) -> str | None:
        """What keeps it from ever having two members; None where nothing does."""
        if self.n_members(n_backbones, trials_per_backbone) >= 2:
            return None
        if self.of == "best" and trials_per_backbone > 1:
            advice = "add a backbone, or set ensemble.of: all"
        else:
            advice = "add a backbone, or set ensemble.of: all and search.trials_per_backbone: 2"
        return (
            f"expected two members at least, found one: {n_backbones} backbone with "
            f"{trials_per_backbone} {'trial' if trials_per_backbone == 1 else 'trials'} and of: "
            f"{self.of}; {advice}"
        )
