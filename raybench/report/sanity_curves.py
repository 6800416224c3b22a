"""Sanity: how alike maps stay as a model is randomised from its output layer down."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from raybench.report.style import COLOURS, clean, need

_DASHES = ("-", "--", ":", "-.")


def sanity_curves(table: pd.DataFrame, unmoved_above: float) -> Figure:
    """Mean rank correlation by depth, a panel a model, a colour and dash an explainer.

    Args:
        table: `backbone`, `trial_id`, `explainer`, `depth` (shallow ones first), `rank` with
            `rank_low` and `rank_high`, and `by_construction`.
        unmoved_above: drawn as a line.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    names = ["backbone", "trial_id", "explainer", "depth", "by_construction"]
    need(table, [*names, "rank", "rank_low", "rank_high"])
    asked = table[~table["by_construction"].astype(bool)]
    explainers = list(dict.fromkeys(asked["explainer"]))
    models = list(table.groupby(["backbone", "trial_id"], sort=False))
    figure = Figure(figsize=(5.2 * len(models) + 0.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False, sharey="row")[0]
    for ax, ((backbone, trial_id), rows) in zip(axes, models, strict=True):
        depths = ["trained", *dict.fromkeys(rows["depth"])]
        for i, explainer in enumerate(explainers):
            part = rows[rows["explainer"] == explainer].set_index("depth")
            x = [depths.index(depth) for depth in part.index]
            style = _DASHES[i // len(COLOURS) % len(_DASHES)]
            colour = COLOURS[i % len(COLOURS)]
            ax.plot([0, *x], [1.0, *part["rank"]], style, color=colour, label=explainer)
            ax.fill_between(x, part["rank_low"], part["rank_high"], color=colour, alpha=0.12)
        ax.axhline(unmoved_above, color="grey", linewidth=0.8, linestyle=":")
        ax.axhline(0, color="grey", linewidth=0.5)
        ax.set_xticks(range(len(depths)), depths, fontsize=8)
        ax.set_title(f"{backbone} ({trial_id})", fontsize=9)
        ax.set_xlabel("what of the model is drawn anew", fontsize=8)
        clean(ax)
    axes[0].set_ylabel("rank correlation with the trained model's map", fontsize=8)
    axes[0].set_ylim(-1.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure
