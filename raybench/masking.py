"""Text without the secrets that an address can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_USER = re.compile(r"(://)([^/?#\s'\"]*)@")
_QUERY = re.compile(
    r"(?i)([?&;](?:[\w.-]*(?:password|passwd|secret|token|signature|credential)|"
    r"pwd|sig|key|api_?key|access_?key(?:_?id)?)=)[^&;\s'\"]+"
)
HIDDEN = "***"


def masked(text: str) -> str:
    """`text` with `***` for passwords and keys of the addresses in it.

    They are what stands after the colon before an `@` (`scheme://user:password@host`), and values
    of a query whose names say so (`?password=...`, `&sig=...`).
    """
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(_without_password, text))


def masked_deep(value: Any) -> Any:
    """Plain types with every text in them `masked`."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_deep(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_deep(item) for item in value]
    return value


def _without_password(found: re.Match[str]) -> str:
    user, colon, _ = found[2].partition(":")
    return f"{found[1]}{user}{colon}{HIDDEN if colon else ''}@"
