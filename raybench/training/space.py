"""The search space: what of the recipes is not a plain value, drawn by Optuna define-by-run.

Conditional by backbone: a trial draws its backbone first, then that backbone's own parameters,
named `<backbone>.<path>`. Lives in a module of its own because Tune pickles the searcher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybench.settings import Choice, Range, Settings
from raybench.training.recipe import Recipe


def searched_settings(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Range | Choice]]:
    """Dotted path and domain of each setting that is searched, in the order of the file."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for path, item in _items(f"{prefix}{name}", value):
            if isinstance(item, Range | Choice):
                yield path, item
            elif isinstance(item, Settings):
                yield from searched_settings(item, f"{path}.")


def _items(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield f"{path}.{index}", item
    else:
        yield path, value


@dataclass(frozen=True)
class SearchSpace:
    """Callable that Optuna runs for each trial: draws, and returns the trial's number."""

    recipes: tuple[Recipe, ...]

    def __call__(self, trial: Any) -> dict[str, int]:
        """Draw one set of hyperparameters from an `optuna.Trial`."""
        chosen = trial.suggest_categorical("backbone", [r.name for r in self.recipes])
        recipe = next(r for r in self.recipes if r.name == chosen)
        for path, domain in searched_settings(recipe):
            name = f"{recipe.name}.{path}"
            if isinstance(domain, Choice):
                trial.suggest_categorical(name, list(domain.choices))
            elif path == "batch_size":
                trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
            else:
                trial.suggest_float(name, domain.low, domain.high, log=domain.log)
        return {"trial_number": int(trial.number)}

    def first_points(self, trials_per_backbone: int) -> list[dict[str, str]]:
        """The backbone of each trial, in turns, so that each gets the same budget."""
        return [{"backbone": r.name} for _ in range(trials_per_backbone) for r in self.recipes]


def resolve(recipes: Sequence[Recipe], drawn: Mapping[str, Any]) -> Recipe:
    """The recipe that a trial trains: the drawn values put in the places of their domains."""
    recipe = next(r for r in recipes if r.name == drawn["backbone"])
    raw = recipe.model_dump()
    for path, _ in searched_settings(recipe):
        *parents, leaf = path.split(".")
        node: Any = raw
        for part in parents:
            node = node[int(part)] if isinstance(node, list | tuple) else node[part]
        node[leaf] = drawn[f"{recipe.name}.{path}"]
    return Recipe.model_validate(raw)


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """A resolved recipe as flat names and values, as trials are listed and compared by.

    The phases' settings are named by phase: `head_lr`, `partial_epochs`; a number is added where
    two phases unfreeze the same (`full2_lr`).
    """
    flat: dict[str, Any] = {}
    for name, value in recipe.model_dump(exclude={"name", "phases", "plateau"}).items():
        flat[name] = value if name != "input_size" else recipe.size[0]
    if recipe.plateau:
        flat |= {f"plateau_{k}": v for k, v in recipe.plateau.model_dump().items()}
    seen: dict[str, int] = {}
    for phase in recipe.phases:
        seen[phase.unfreeze] = seen.get(phase.unfreeze, 0) + 1
        count = seen[phase.unfreeze]
        label = phase.unfreeze if count == 1 else f"{phase.unfreeze}{count}"
        flat |= {f"{label}_lr": phase.lr, f"{label}_epochs": phase.epochs}
    return flat
