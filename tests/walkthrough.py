"""The explainer that docs/explainers.md walks through, as its very text."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "explainers.md"


def example() -> str:
    """The code block below the heading `Adding one`."""
    _, _, below = _PAGE.read_text(encoding="utf-8").partition("\n## Adding one\n")
    _, _, code = below.partition("```python\n")
    return code.partition("```")[0]


def load() -> ModuleType:
    """The block as a module that pickle finds."""
    name = "brighten_of_the_docs"
    spec = importlib.util.spec_from_loader(name, loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(example(), str(_PAGE), "exec"), module.__dict__)
    return module
