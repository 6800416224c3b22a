"""What the driver writes down of trials whose batches did not fit. About 1 second."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raybench.storage import Storage
from raybench.studies.context import Context
from raybench.studies.search_stage import _winner
from raybench.studies.train_stage import Listener, _nothing_trained
from raybench.tracking.events import EventLog
from raybench.training import relay as relays
from raybench.training.recipe import Recipe
from raybench.training.settings import Search
from raybench.training.state import Epoch
from raybench.training.tune import TrialResult

RECIPE = Recipe.model_validate(
    {
        "name": "test_resnet",
        "weights": "none",
        "input_size": 48,
        "batch_size": 32,
        "phases": [{"epochs": 3, "lr": 1e-3}],
    }
)


class Events(list[dict[str, Any]]):
    """An event log in memory."""

    def read(self) -> list[dict[str, Any]]:
        return list(self)

    def append(self, kind: str, **values: Any) -> None:  # type: ignore[override]
        super().append({"kind": kind, **values})


def listener(events: Events) -> Listener:
    config = SimpleNamespace(
        backbones=(RECIPE,), recipes=(RECIPE,), search=SimpleNamespace(trials_per_backbone=1)
    )
    context = SimpleNamespace(
        run=SimpleNamespace(events=events), config=config, of=lambda split: ()
    )
    return Listener(cast(Context, context), RECIPE.n_epochs, 1)


def reported(relay: Any, number: int, **more: Any) -> None:
    epoch = Epoch(number, 0, "full", 1e-3, 1.0, 0.5, 1.0, 0.5, 1.0)
    trial = SimpleNamespace(config={"backbone": "test_resnet", "trial_number": 0})
    relay.on_trial_result(number, [trial], trial, epoch.figures() | {"done": False} | more)


def test_a_smaller_pass_is_told_once_and_stands_with_each_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = Events()
    relay = relays.Relay((RECIPE,), "accuracy")
    first = listener(events)
    monkeypatch.setattr(relays, "_listener", first)
    reported(relay, 0)
    reported(relay, 1, micro_batch=8)
    first.close()
    again = listener(events)  # a resumed driver reads what was told
    monkeypatch.setattr(relays, "_listener", again)
    reported(relay, 2, micro_batch=8)
    again.close()
    epochs = [e for e in events if e["kind"] == "epoch"]
    assert [e.get("micro_batch") for e in epochs] == [None, 8, 8]
    assert [e["message"] for e in events if e["kind"] == "warning"] == [
        "t0000 test_resnet: memory was out with batches of 32; it goes on in passes of 8 images, "
        "whose gradients are added up"
    ]


def test_a_resumed_driver_warns_of_nothing_a_second_time(tmp_path: Path) -> None:
    events = EventLog(Storage(str(tmp_path)))
    run = SimpleNamespace(events=events)
    context = Context(cast(Any, SimpleNamespace()), cast(Any, run), cast(Any, None), (), {})
    study = SimpleNamespace(title="lime", trial_id="t0000")
    tried = SimpleNamespace(winner=None, rows=[{"error": "out of luck"}])
    for _ in range(2):
        one = listener(cast(Any, events))
        one.budget_spent("the budget is used up")
        one.close()
        assert _winner(context, cast(Any, study), cast(Any, tried)) is None
    messages = [str(e["message"]) for e in events.read() if e["kind"] == "warning"]
    assert [text.split(":")[0] for text in messages] == [
        "the budget is used up",
        "no settings of lime (t0000) were found, its own fail on every Val image",
    ]


def ended(error: str | None) -> TrialResult:
    return TrialResult("t0000", RECIPE, "failed" if error else "stopped", 0, error, None)


def test_where_nothing_could_be_trained_the_error_names_the_budget_and_what_to_do() -> None:
    search = Search(hours=0.5, gpu_hours=2.0)
    said = _nothing_trained(search, [ended("out of luck"), ended(None)])
    assert said.startswith("no trial could be trained: out of luck; search.hours (0.5) or ")
    assert "search.gpu_hours (2)" in said
    assert "--overwrite" in said
    assert "None" not in said
    assert _nothing_trained(search, [ended("out of luck")]) == (
        "no trial could be trained: out of luck"
    ), "where every trial failed the budget is not to blame"
