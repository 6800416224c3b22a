"""The search space: what of the recipes is not a plain value, drawn by Optuna define-by-run.

Conditional by backbone: a trial draws its backbone first, then that backbone's own parameters,
named `<backbone>.<path>`. Lives in a module of its own because Tune pickles the searcher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from raybench.settings import Choice, Range, Settings, settled
from raybench.training.recipe import Recipe

_WHOLE = ("batch_size", "unfreeze", "clahe_tiles")
"""Settings that are whole numbers where an interval is searched."""


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
        drawn: dict[str, Any] = {}
        for path, domain in searched_settings(recipe):
            if _is_idle(recipe, path, drawn):
                continue
            name = f"{recipe.name}.{path}"
            if isinstance(domain, Choice):
                drawn[path] = trial.suggest_categorical(name, list(domain.choices))
            elif path.rpartition(".")[2] in _WHOLE:
                drawn[path] = trial.suggest_int(
                    name, int(domain.low), int(domain.high), log=domain.log
                )
            else:
                drawn[path] = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
        return {"trial_number": int(trial.number)}

    def first_points(self, trials_per_backbone: int) -> list[dict[str, Any]]:
        """The backbone of each trial, in turns, so that each gets the same budget.

        The first trial of each takes what its domains name as `first`; the rest is drawn.
        """
        points: list[dict[str, Any]] = [
            {"backbone": r.name} for _ in range(trials_per_backbone) for r in self.recipes
        ]
        for recipe, point in zip(self.recipes, points, strict=False):
            for path, domain in searched_settings(recipe):
                if domain.first is not None:
                    point[f"{recipe.name}.{path}"] = domain.first
        return points


def resolve(recipes: Sequence[Recipe], drawn: Mapping[str, Any]) -> Recipe:
    """The recipe that a trial trains: the drawn values put in the places of their domains."""
    recipe = next(r for r in recipes if r.name == drawn["backbone"])
    raw = recipe.model_dump()
    values: dict[str, Any] = {}
    for path, domain in searched_settings(recipe):
        *parents, leaf = path.split(".")
        node: Any = raw
        for part in parents:
            node = node[int(part)] if isinstance(node, list | tuple) else node[part]
        idle = _is_idle(recipe, path, values)
        values[path] = settled(domain) if idle else drawn[f"{recipe.name}.{path}"]
        node[leaf] = values[path]
    return Recipe.model_validate(raw)


def _is_idle(recipe: Recipe, path: str, drawn: Mapping[str, Any]) -> bool:
    """Whether a setting does nothing beside the values drawn before it: it is not drawn then."""
    *parents, leaf = path.split(".")
    node: Any = recipe
    for part in parents:
        node = node[int(part)] if isinstance(node, tuple) else getattr(node, part)
    if leaf not in type(node).search_if:
        return False
    other, values = type(node).search_if[leaf]
    found = drawn.get(".".join([*parents, other]), getattr(node, other))
    return found not in values


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """A resolved recipe as flat names and values, as trials are listed and compared by.

    The phases' settings are named by their place, from 0 on as in the recipe: `phase0_unfreeze`,
    `phase0_lr`, `phase0_epochs`. So a name means one phase in every trial, also where the depth is
    searched; a depth is text (`head`, `2`), since a column is of one type. Preprocessing keeps its
    names (`lung_masking`), augmentation's begin with `augment_`.
    """
    flat: dict[str, Any] = {}
    apart = {"name", "phases", "plateau", "preprocess", "augment"}
    for name, value in recipe.model_dump(exclude=apart).items():
        flat[name] = value if name != "input_size" else recipe.size[0]
    if recipe.weights not in ("hub", "none"):
        flat["weights"] = PurePath(recipe.weights).name  # no folder of this machine
    flat |= recipe.preprocessing.model_dump()
    flat |= {f"augment_{k}": v for k, v in recipe.augmentation.model_dump().items()}
    if recipe.plateau:
        flat |= {f"plateau_{k}": v for k, v in recipe.plateau.model_dump().items()}
    for place, phase in enumerate(recipe.phases):
        depth = phase.unfreeze if isinstance(phase.unfreeze, str) else int(phase.unfreeze)
        told = {"unfreeze": str(depth), "lr": phase.lr, "epochs": phase.epochs}
        flat |= {f"phase{place}_{name}": value for name, value in told.items()}
    return flat
