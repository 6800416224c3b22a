"""Two data sets in one sweep: classifiers of one, explanations of the other's images.

A reader's settings are the reader. Here each gets what it may hold beside them: `explain` where
classifiers are trained on it, `class_map` where only its images are explained. What is explained
has no `explain` of its own, so the nesting ends there.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from raybench.data.chexlocalize import CheXlocalize
from raybench.data.covid_qu_ex import CovidQuEx
from raybench.data.folder import Folder
from raybench.data.phantom import Phantom
from raybench.settings import Settings
from raybench.storage import Storage


class _Explained(Settings):
    least_classes: ClassVar[int] = 1

    class_map: dict[str, str] = Field(
        {}, description="the classifier's name for a class of this data set, where they differ"
    )
    same_patients: bool | None = Field(
        None,
        description="whether equal patient ids mean one patient here and where classifiers are "
        "trained: true refuses images of Train's patients; null: where both have one root",
    )

    def mapped(self, label: str) -> str:
        """The classifier's name for a label of this data set; its own where none is given."""
        return self.class_map.get(label, label)


class ExplainedChexlocalize(_Explained, CheXlocalize):
    """CheXlocalize, its images explained."""


class ExplainedCovidQuEx(_Explained, CovidQuEx):
    """COVID-QU-Ex, its images explained."""


class ExplainedFolder(_Explained, Folder):
    """A folder, its images explained."""


class ExplainedPhantom(_Explained, Phantom):
    """Phantoms, explained."""


Explained = ExplainedChexlocalize | ExplainedCovidQuEx | ExplainedFolder | ExplainedPhantom


class _Classified(Settings):
    explain: Annotated[Explained, Field(discriminator="name")] | None = Field(
        None,
        description="another data set whose Val and Test images are explained in place of this "
        "one's; null: this one's",
    )


class ClassifiedChexlocalize(_Classified, CheXlocalize):
    """CheXlocalize where classifiers would be trained on it: refused, it has no Train split."""

    @model_validator(mode="after")
    def _no_train(self) -> Self:
        raise ValueError(
            "CheXlocalize has no Train split, so that no classifier can be trained on it: make "
            "the data set that it is trained on `data`, and this one its `data.explain`"
        )


class ClassifiedCovidQuEx(_Classified, CovidQuEx):
    """The COVID-QU-Ex reader: its settings are the reader itself (`raybench.types.Dataset`)."""


class ClassifiedFolder(_Classified, Folder):
    """A folder and its index: the settings are the reader itself (`raybench.types.Dataset`)."""


class ClassifiedPhantom(_Classified, Phantom):
    """Phantom chest X-rays: the settings are the reader itself (`raybench.types.Dataset`)."""


Classified = ClassifiedCovidQuEx | ClassifiedFolder | ClassifiedPhantom


def has_same_patients(classified: Settings, explained: Explained) -> bool:
    """Whether equal patient ids of two data sets mean one patient."""
    if explained.same_patients is not None:
        return explained.same_patients
    roots = [getattr(data, "root", None) for data in (classified, explained)]
    return None not in roots and len({Storage(str(root)).path() for root in roots}) == 1


def class_problems(classes: tuple[str, ...], explained: Explained) -> list[str]:
    """What is wrong with the classes of what is explained, a line a mistake.

    Args:
        classes: the classifier's.

    Raises:
        DataError: the classes of the data set that is explained cannot be read.
    """
    theirs = explained.classes
    sides = (
        f"the classifier's classes are {', '.join(classes)}, this data set's {', '.join(theirs)}"
    )
    problems = []
    for name, ours in explained.class_map.items():
        if name not in theirs:
            problems.append(f"data.explain.class_map: no class {name!r}; {sides}")
        if ours not in classes:
            problems.append(f"data.explain.class_map.{name}: no class {ours!r}; {sides}")
    kind = explained.infection_class
    if explained.mapped(kind) not in classes and kind not in explained.class_map:
        problems.append(
            f"data.explain.infection_class: {kind!r} is no class of the classifier; {sides}: "
            "name its counterpart in data.explain.class_map"
        )
    return problems
