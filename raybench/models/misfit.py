"""Why tensors do not fit a network: which lack, which are too many, which have another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

_NAMED = 5
_COUNTER = "num_batches_tracked"
"""Of a batch normalisation; torch puts 0 where a file has none."""

Tensors = Mapping[str, torch.Tensor]


def misfit(expected: Tensors, found: Tensors, head: Sequence[str]) -> str | None:
    """What a person has to know of tensors that do not fit, in one line; None where they fit.

    Args:
        expected: the network's own, by name.
        found: those that it is to take.
        head: prefixes of the names of the network's classifier.

    Returns:
        Up to five names of each kind and how many more there are; and what it comes from, where
        that can be told: all names begin alike, or the head is one for another number of classes.
    """
    missing = [n for n in expected if n not in found and not n.endswith(_COUNTER)]
    unexpected = sorted(n for n in found if n not in expected and not n.endswith(_COUNTER))
    other = [n for n in expected if n in found and expected[n].shape != found[n].shape]
    shapes = [f"{n}: expected {_shape(expected[n])}, found {_shape(found[n])}" for n in other]
    said = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (
            ("of another shape", shapes),
            ("missing", missing),
            ("unexpected", unexpected),
        )
        if names
    ]
    if not said:
        return None
    prefix = _prefix(expected, found)
    if prefix is not None:
        said.append(f"every name begins with {prefix!r}: take it off")
    elif other and not missing and not unexpected and _is_head(other, expected, found, head):
        n_expected, n_found = len(expected[other[0]]), len(found[other[0]])
        said.append(f"the head is one for {n_found} classes, not for {n_expected}")
    return "; ".join(said)


def _is_head(names: Sequence[str], expected: Tensors, found: Tensors, head: Sequence[str]) -> bool:
    """Whether these are the classifier's alone, and differ in the number of classes alone."""
    own = tuple(f"{h}." for h in head)
    return all(
        n.startswith(own)
        and expected[n].ndim == found[n].ndim > 0
        and expected[n].shape[1:] == found[n].shape[1:]
        for n in names
    )


def _prefix(expected: Tensors, found: Tensors) -> str | None:
    """What stands before every name (`module.`, `model.`) and without which most are known."""
    first = next(iter(found), "")
    parts = first.split(".")
    for n in range(1, len(parts)):
        prefix = ".".join(parts[:n]) + "."
        if not all(name.startswith(prefix) for name in found):
            return None
        known = sum(name.removeprefix(prefix) in expected for name in found)
        if 2 * known > len(found):
            return prefix
    return None


def _shape(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
