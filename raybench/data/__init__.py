"""Data sets: readers that satisfy `raybench.types.Dataset`, decoding, preprocessing, the scan.

A new data set is one file, and two lines in `across`: as what is classified, as what is explained.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raybench.data.across import (
    ClassifiedChexlocalize,
    ClassifiedCovidQuEx,
    ClassifiedFolder,
    ClassifiedPhantom,
)
from raybench.data.chexlocalize import CheXlocalize
from raybench.data.covid_qu_ex import CovidQuEx
from raybench.data.folder import Folder
from raybench.data.phantom import Phantom

DatasetSettings = Annotated[
    ClassifiedChexlocalize | ClassifiedCovidQuEx | ClassifiedFolder | ClassifiedPhantom,
    Field(discriminator="name"),
]
"""The settings of a data set, told apart by `name`; once parsed, they are the reader."""

__all__ = ["CheXlocalize", "CovidQuEx", "DatasetSettings", "Folder", "Phantom"]
