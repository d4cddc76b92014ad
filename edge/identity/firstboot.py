"""The file that a box finds at its first boot: the fleet's address and a token, which is erased once it was used."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.durable import write_atomically
from edge.errors import ConfigurationError
from edge.settings import toml_value

_MOST_BYTES = 16 * 1024
_KEYS = ("url", "token", "name")


@dataclass(frozen=True, slots=True)
class Seed:
    """What the file says. `token` is empty once it was erased."""

    url: str
    token: str
    name: str

    def __repr__(self) -> str:
        return f"Seed({self.url!r})"


def read_seed(path: Path) -> Seed:
    """A JSON object or TOML with `url`, `token` and perhaps `name`. Raises ConfigurationError, which repeats no secret."""
    return _seed(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise ConfigurationError(f"{path} is over {_MOST_BYTES >> 10} KiB: that is no enrollment file")
    return data


def _seed(data: bytes, path: Path) -> Seed:
    try:
        text = data.decode("utf-8-sig")
        found: Any = json.loads(text) if _is_json(data) else tomllib.loads(text)
    except (ValueError, UnicodeDecodeError):
        raise ConfigurationError(
            f'{path} is neither TOML nor JSON; it says url = "https://..." and token = "E10..."'
        ) from None
    if not isinstance(found, dict) or not all(isinstance(found.get(key, ""), str) for key in _KEYS):
        raise ConfigurationError(f"{path} must say url and token, as texts")
    if unknown := next((key for key in found if key not in _KEYS), None):
        raise ConfigurationError(f"{path} has {unknown!r}, which means nothing there: it has {', '.join(_KEYS)}")
    if not found.get("url"):
        raise ConfigurationError(f"{path} does not say url, the fleet's address")
    return Seed(found["url"], found.get("token", ""), found.get("name", ""))


def erase_token(path: Path) -> str:
    """Write the file anew without its token; it is on the disk then. What was wrong, empty if nothing."""
    try:
        data = _read(path)
        seed = _seed(data, path)
        if not seed.token:
            return ""
        rest = {"url": seed.url, **({"name": seed.name} if seed.name else {})}
        if _is_json(data):
            text = json.dumps(rest, indent=1) + "\n"
        else:
            text = "# The token was used, and erased.\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in rest.items())
        _replace(path, text.encode())
    except OSError as error:
        return error.strerror or str(error)
    except ConfigurationError as error:
        return error.message
    return ""


def _replace(path: Path, data: bytes) -> None:
    """By a new file in its place; where that cannot be (one file mounted by itself), in place. Raises OSError."""
    place = path.resolve()
    found = place.stat()
    owner = (found.st_uid, found.st_gid) if os.geteuid() == 0 else None
    try:
        write_atomically(place, data, found.st_mode & 0o777, owner=owner)
    except OSError:
        with place.open("r+b") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())


def _is_json(data: bytes) -> bool:
    return data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
