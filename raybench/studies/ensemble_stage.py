"""The ensemble: chosen on Val, written as one checkpoint, from then on a trial like the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pandas as pd

from raybench.config_ensemble import Ensemble
from raybench.errors import ModelError
from raybench.models.checkpoint import ENSEMBLE, Card, card_of, join
from raybench.studies.cards import card_name, checkpoint_name, write_card
from raybench.studies.context import Context, explains

log = logging.getLogger(__name__)


def choose_members(settings: Ensemble, val: pd.DataFrame, best: Sequence[str]) -> list[str]:
    """The trials whose mean it is, by trial.

    Args:
        val: a row a trial with a checkpoint: `trial_id`, `val_accuracy` and `val_loss`.
        best: the best trial of each backbone.
    """
    pool = val if settings.of == "all" else val[val.trial_id.isin(list(best))]
    ordered = pool.sort_values(
        ["val_accuracy", "val_loss", "trial_id"], ascending=[False, True, True]
    )
    return sorted(map(str, ordered.trial_id[: settings.top]))


def with_ensemble(
    context: Context, trials: pd.DataFrame, val: pd.DataFrame, best: Sequence[str]
) -> pd.DataFrame:
    """The trials, and the ensemble as one more where the sweep asks for it.

    Where it cannot be made (of its members all but one failed, or they see images preprocessed in
    different ways) a warning says why, and the sweep, which is trained by now, goes on without.

    Args:
        val: scores on Val of the trials; of others too, which are passed over.
        best: the best trial of each backbone.
    """
    settings = context.config.ensemble
    if settings is None:
        return trials
    own = val[val.trial_id.isin(list(trials[trials.has_checkpoint].trial_id))]
    try:
        card = _make(context, choose_members(settings, own, best))
    except ModelError as error:
        context.warn_once(f"there is no ensemble in this sweep: {error}")
        return trials
    return _joined(trials, card)


def _make(context: Context, members: Sequence[str]) -> Card:
    """Write the checkpoint, its card and its events where they are not there yet."""
    storage = context.run.storage
    name = checkpoint_name(ENSEMBLE)
    if storage.exists(name):
        card = card_of(storage.read(name), name)
    else:
        data = join({trial: storage.read(checkpoint_name(trial)) for trial in members})
        storage.write(name, data)
        card = card_of(data, name)
    if not storage.exists(card_name(ENSEMBLE)):
        write_card(context, ENSEMBLE, storage.read(name), None)
    _tell(context, list(card.members))
    return card


def _tell(context: Context, members: Sequence[str]) -> None:
    """Say once what it is made of and who cannot explain it; its run in MLflow is of that."""
    settings, events = context.config.ensemble, context.run.events
    assert settings is not None
    if any(e["kind"] == "trial_finished" and e["trial_id"] == ENSEMBLE for e in events.read()):
        return
    left_out = [e.title for e in context.config.explain.explainers if not explains(e, ENSEMBLE)]
    told = {"members": ", ".join(members), **settings.model_dump()}
    events.append("trial_started", trial_id=ENSEMBLE, backbone=ENSEMBLE, hyperparameters=told)
    events.append("ensemble_made", members=members, not_explained_by=left_out)
    events.append("trial_finished", trial_id=ENSEMBLE, status=ENSEMBLE, error=None)
    if left_out:
        log.warning(
            "the ensemble of %s is not explained by %s: they read one network's layers or "
            "gradients, and it has several",
            told["members"],
            ", ".join(left_out),
        )


def _joined(trials: pd.DataFrame, card: Card) -> pd.DataFrame:
    """Its row below the others; whole numbers that it has no value of stay whole numbers."""
    row = {
        "trial_id": ENSEMBLE,
        "backbone": ENSEMBLE,
        "status": ENSEMBLE,
        "n_epochs": 0,
        "has_checkpoint": True,
        "input_size": max(card.input_size),
    }
    whole = [column for column in trials.select_dtypes("int") if column not in row]
    return pd.concat(
        [trials.astype(dict.fromkeys(whole, "Int64")), pd.DataFrame([row])], ignore_index=True
    )


def shown(judged: pd.DataFrame) -> pd.DataFrame:
    """The rows that stand on the leaderboard and in figures: the best trials, and the ensemble."""
    return judged[judged.best | (judged.trial_id == ENSEMBLE)]
