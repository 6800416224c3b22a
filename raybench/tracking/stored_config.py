"""`config.yaml` of a run folder: the resolved configuration, its digest in a comment above."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from raybench.errors import RunFolderError
from raybench.masking import masked_deep
from raybench.storage import Storage

CONFIG_NAME = "config.yaml"

_HEADER = "# The resolved configuration of this run folder. raybench wrote it; do not edit it.\n"
_DIGEST = re.compile(r"^# digest: (\S+)$", re.MULTILINE)
_MAX_LINES = 10


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration as flat dotted keys: `explainers.0.name`. What is empty stays."""
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        items: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            items = list(value.items())
        elif isinstance(value, list | tuple):
            items = list(enumerate(value))
        if not items:
            flat[path] = value
        for key, item in items:
            walk(item, f"{path}.{key}")

    for key, item in config.items():
        walk(item, str(key))
    return flat


class StoredConfig:
    """The configuration file of one run folder.

    The digest stands in the same file, so that the two are written in one atomic step.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._path = storage.path()

    def digest(self) -> str | None:
        """The digest; None where there is no such file, or raybench did not write it."""
        if not self._storage.exists(CONFIG_NAME):
            return None
        found = _DIGEST.search(self._storage.read(CONFIG_NAME).decode(errors="replace"))
        return found[1] if found else None

    def need_digest(self) -> str:
        """The digest.

        Raises:
            RunFolderError: this is not a run folder.
        """
        digest = self.digest()
        if digest is None:
            raise RunFolderError(
                f"{self._path}: not a run folder: expected raybench's {CONFIG_NAME} in it; name "
                f"the folder that a sweep wrote (runs/<sweep name>)"
            )
        return digest

    def load(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            RunFolderError: this is not a run folder, or the file was damaged.
        """
        self.need_digest()
        try:
            loaded = yaml.safe_load(self._storage.read(CONFIG_NAME))
        except yaml.YAMLError as error:
            raise RunFolderError(
                f"{self._path}/{CONFIG_NAME}: not YAML any more ({error}); put back what raybench "
                f"wrote"
            ) from error
        return loaded if isinstance(loaded, dict) else {}

    def write(self, config: Mapping[str, Any], digest: str) -> None:
        """Write both in one step. `config` holds plain types; passwords in it are masked.

        Raises:
            StorageError: the file cannot be written.
        """
        body = yaml.safe_dump(masked_deep(config), sort_keys=False, allow_unicode=True)
        self._storage.write(CONFIG_NAME, f"{_HEADER}# digest: {digest}\n{body}".encode())

    def differences(self, config: Mapping[str, Any]) -> str:
        """A message that says which keys of the stored configuration differ from `config`."""
        stored = flatten(self.load())
        # Through YAML, so that both sides went the same way and differ in what they say only.
        now = flatten(yaml.safe_load(yaml.safe_dump(masked_deep(config))) or {})
        keys = sorted(k for k in stored.keys() | now.keys() if stored.get(k) != now.get(k))
        lines = [f"{key}: {_value(stored, key)} there, {_value(now, key)} here" for key in keys]
        if not keys:
            lines = ["no key: the folder was written by another version of raybench"]
        if len(lines) > _MAX_LINES:
            lines = [*lines[: _MAX_LINES - 1], f"and {len(lines) - _MAX_LINES + 1} more keys"]
        head = (
            f"{self._path}: holds a sweep of another configuration; choose another output folder, "
            f"or pass --overwrite to remove it and start again. What differs:"
        )
        return "\n  ".join([head, *lines])


def _value(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "nothing"
