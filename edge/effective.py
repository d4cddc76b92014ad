"""Which value each setting has, and where it came from: default < enrollment < file < environment < flag."""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from edge.errors import ConfigurationError, NotYet
from edge.settings import (
    ENV_PREFIX,
    NAME_PATTERN,
    SECTIONS,
    Declared,
    FurtherModel,
    Settings,
    declared,
    declared_of_a_model,
    holds_credentials,
)

log = logging.getLogger(__name__)

SYSTEM_HOME = Path("/var/lib/edge")
FILE_VARIABLE = "EDGE_SETTINGS"
"""Names the settings file where it does not lie in EDGE_HOME: settings may be read-only while the state is not."""
ENROLLED_SETTINGS = Path("identity/current/settings.toml")
"""Below EDGE_HOME: what the fleet told this node when it enrolled, written by `edge.identity`."""
_TOGETHER = (
    ("mqtt", frozenset({"url"}), frozenset({"url", "prefix", "cert_file", "key_file", "ca_file"})),
    ("mqtt", frozenset({"cert_file", "key_file"}), frozenset({"cert_file", "key_file"})),
    ("fleet", frozenset({"url", "file"}), frozenset({"url", "model", "cert_file", "key_file", "ca_file"})),
    ("fleet", frozenset({"cert_file", "key_file"}), frozenset({"cert_file", "key_file"})),
)
"""Who sets one of the first of a section himself means another server, or another certificate, than the enrollment does: the
second are not taken from the enrollment then."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: `where` is a phrase such as `EDGE_SERVER__PORT` or `/var/lib/edge/edge.toml`."""

    source: Literal["default", "enrollment", "file", "env", "flag"]
    where: str


Flags = Mapping[str, tuple[str, str]]
"""A setting's key: its value, and the flag as typed."""


@dataclass(frozen=True, slots=True)
class Effective:
    """The settings in force. `origins` has an entry for each setting, by its key."""

    home: Path
    file: Path
    """The settings file, whether there is one or not."""
    settings: Settings
    origins: Mapping[str, Origin]
    flags: Flags

    def anew(self, env: Mapping[str, str]) -> Effective:
        """As they would be for a process that began now with the same flags. Raises ConfigurationError."""
        return load(self.home, env, self.flags)

    def without_enrollment(self, env: Mapping[str, str]) -> Effective:
        """As they would be if this machine were in no fleet. Raises ConfigurationError."""
        return load(self.home, env, self.flags, enrolled=False)

    def is_own(self, *keys: str) -> bool:
        """Whether file, environment or flags say all of these settings."""
        return all(self.origins[key].source in ("file", "env", "flag") for key in keys)

    def value(self, declared: Declared) -> Any:
        """The value in force of one setting."""
        return getattr(getattr(self.settings, declared.section), declared.name)

    def with_connections(self, most: int) -> Effective:
        """The same with that in `server.max_connections`: the machine may allow fewer than the settings."""
        server = self.settings.server.model_copy(update={"max_connections": most})
        return replace(self, settings=self.settings.model_copy(update={"server": server}))

    @property
    def keys_file(self) -> Path:
        """Absolute path of the API keys."""
        return self.home / self.settings.auth.keys_file


def default_home(env: Mapping[str, str]) -> Path:
    """EDGE_HOME, else /var/lib/edge for root where it exists, else ~/.local/share/edge (or under XDG_DATA_HOME). Raises
    ConfigurationError."""
    try:
        if env.get("EDGE_HOME"):
            home = Path(env["EDGE_HOME"]).expanduser().absolute()
        elif os.geteuid() == 0 and SYSTEM_HOME.is_dir():
            home = SYSTEM_HOME
        else:
            data = env.get("XDG_DATA_HOME")
            home = (Path(data) if data else Path.home() / ".local" / "share") / "edge"
        str(home).encode()
    except RuntimeError:
        raise ConfigurationError(
            "this user has no home directory; say where all state shall lie, with EDGE_HOME or --home"
        ) from None
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{home} is no UTF-8 text, which engines are told where to keep things in; choose another with EDGE_HOME or --home"
        ) from None
    return home


def load(home: Path, env: Mapping[str, str], flags: Flags, *, enrolled: bool = True) -> Effective:
    """Merge enrollment (unless `enrolled` is false), file, environment and flags over the defaults. Raises ConfigurationError
    that names key, source and the values allowed."""
    found: dict[str, tuple[Any, Origin]] = {}
    known = {d.key: d for d in declared()}
    path = Path(env[FILE_VARIABLE]).expanduser().absolute() if env.get(FILE_VARIABLE) else home / "edge.toml"
    file = _read(path, required=bool(env.get(FILE_VARIABLE)))
    further = _further_models(file.pop("models", {}), path)
    for key, value, origin in (*_from_file(file, path), *_from_env(env), *_from_flags(flags)):
        if key not in known:
            raise ConfigurationError(_unknown(key, origin, list(known)))
        found[key] = (value, origin)
    if enrolled:
        found = {**_from_enrollment(home / ENROLLED_SETTINGS, set(found), set(known)), **found}
    try:
        settings = Settings.model_validate({**_tables(found), "models": further})
    except ValidationError as error:
        refusal = _refusal(error, found, known)
        if not _is_enrollments_fault(found):
            raise ConfigurationError(refusal) from None
        # The identity counts as damaged then, and the node serves without it.
        log.error("the enrollment's settings are not used", extra={"event": "enrollment_unusable", "reason": refusal})
        return load(home, env, flags, enrolled=False)
    _require_distinct_names(settings, path)
    default = Origin("default", "default")
    origins = {key: found[key][1] if key in found else default for key in known}
    return Effective(home, path, settings, origins, flags)


def _tables(found: Mapping[str, tuple[Any, Origin]]) -> dict[str, Any]:
    tables: dict[str, Any] = {section: {} for section in SECTIONS}
    for key, (value, _) in found.items():
        section, _, name = key.partition(".")
        tables[section][name] = value
    return tables


def _is_enrollments_fault(found: Mapping[str, tuple[Any, Origin]]) -> bool:
    """Whether what the enrollment says is refused by itself; what does not go with it is its owner's to correct."""
    try:
        Settings.model_validate(_tables({key: pair for key, pair in found.items() if pair[1].source == "enrollment"}))
    except ValidationError:
        return True
    return False


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if required:
            raise NotYet(f"there is no {path}, which {FILE_VARIABLE} names; write it, or unset the variable") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        cure = "; give this user the directory, or choose another with EDGE_HOME or --home"
        raise ConfigurationError(
            f"cannot read {path}: {_reason(error)}{cure if isinstance(error, PermissionError) else ''}"
        ) from None
    if not text:
        log.warning(
            f"{path} is empty, so nothing in it counts: if that is not meant, it was cut short; restore it",
            extra={"event": "settings_empty", "file": str(path)},
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None


def _further_models(tables: Any, path: Path) -> dict[str, FurtherModel]:
    """The tables `[models.NAME]`. Raises ConfigurationError."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigurationError(f"`models` in {path} must hold tables: write [models.NAME] and its settings below")
    found = {}
    for name, table in tables.items():
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigurationError(
                f"[models.{name}] in {path} is no name: it has letters, digits and . _ : / + -, with a letter or digit first"
            )
        known = {d.name: d for d in declared_of_a_model(name)}
        if unknown := next((key for key in table if key not in known), None):
            raise ConfigurationError(
                f"unknown setting `models.{name}.{unknown}` in {path}: models.NAME has {', '.join(known)}"
                + (' (quote a NAME that has a dot: [models."a.b"])' if isinstance(table[unknown], dict) else "")
            )
        try:
            found[name] = FurtherModel.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # a rule over several settings
                raise ConfigurationError(f"[models.{name}] in {path}: {_said(first)}") from None
            key = str(first["loc"][0])
            raise ConfigurationError(
                f"models.{name}.{key} = {table[key]!r} (from {path}) is refused: it must be {known[key].allowed}"
            ) from None
    return found


def _require_distinct_names(settings: Settings, path: Path) -> None:
    """No two models answer to one name. Raises ConfigurationError."""
    main = settings.model
    named = [(main.served_name, "the node's own model"), *((alias, "model.aliases") for alias in main.aliases)]
    for name, further in settings.models.items():
        named += [(name, f"[models.{name}]"), *((alias, f"models.{name}.aliases") for alias in further.aliases)]
    owners: dict[str, str] = {}
    for name, owner in named:
        if name in owners:
            both = owner if owner == owners[name] else f"{owners[name]} and {owner}"
            raise ConfigurationError(
                f"two models in {path} answer to the name {name!r} ({both}); give one of them another name"
            )
        owners[name] = owner


def _said(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _from_enrollment(path: Path, given: set[str], known: set[str]) -> dict[str, tuple[Any, Origin]]:
    """What the enrollment says and nobody else does. Settings of a later version are passed over."""
    origin = Origin("enrollment", "enrollment")
    try:
        tables = _read(path, required=False)
    except ConfigurationError as error:  # the identity counts as damaged then, and the node serves without it
        log.error(
            "the enrollment's settings are not used", extra={"event": "enrollment_unusable", "reason": error.message}
        )
        return {}
    found = {key: (value, origin) for key, value, _ in _from_file(tables, path) if key in known}
    if holds_credentials(str(found.get("fleet.url", ("", origin))[0])):
        # Fleets once handed such addresses out. Nobody on site can mend that, and the node must come up to hear of better.
        log.error(
            "the enrollment's fleet.url holds a password and is not used: take it out of the fleet's settings",
            extra={"event": "enrollment_unusable", "reason": "fleet.url holds a user or a password"},
        )
        found = {key: value for key, value in found.items() if not key.startswith("fleet.")}
    for section, said, dropped in _TOGETHER:
        if any(f"{section}.{name}" in given for name in said):
            found = {key: value for key, value in found.items() if key not in {f"{section}.{name}" for name in dropped}}
    return found


def _from_file(tables: dict[str, Any], path: Path) -> Iterator[tuple[str, Any, Origin]]:
    origin = Origin("file", str(path))
    for section, table in tables.items():
        if not isinstance(table, dict):
            yield section, table, origin
            continue
        for name, value in table.items():
            yield f"{section}.{name}", value, origin


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"


def _from_env(env: Mapping[str, str]) -> Iterator[tuple[str, str, Origin]]:
    for variable, value in env.items():
        # Only names with a double underscore are ours: Kubernetes puts EDGE_PORT and the like next to a service `edge`.
        # An empty value counts as not set, as compose files and charts write it.
        if variable.startswith(ENV_PREFIX) and "__" in variable and value:
            section, _, name = variable[len(ENV_PREFIX) :].lower().partition("__")
            yield f"{section}.{name}", value, Origin("env", variable)


def _from_flags(flags: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str, Origin]]:
    for key, (value, typed) in flags.items():
        yield key, value, Origin("flag", typed)


def _unknown(key: str, origin: Origin, known: list[str]) -> str:
    section, _, name = key.partition(".")
    siblings = [k.partition(".")[2] for k in known if k.startswith(f"{section}.")]
    if section == "models":
        return f"{origin.where}: further models are named in the file only: write [models.NAME] in EDGE_HOME/edge.toml"
    if not siblings:
        sections = ", ".join(Settings.model_fields)
        return f"unknown section `{section}` in {origin.where}: sections are {sections}"
    if not name:
        return f"`{section}` in {origin.where} must be a table: write [{section}] and its settings below"
    return f"unknown setting `{key}` in {origin.where}: {section} has {', '.join(siblings)}"


def _refusal(error: ValidationError, found: Mapping[str, tuple[Any, Origin]], known: Mapping[str, Declared]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][:2])
    if key not in found:  # a rule over several settings of one section
        sources = dict.fromkeys(origin.where for k, (_, origin) in found.items() if k.startswith(key))
        return f"{_said(first)} (set by {', '.join(sources)})"
    value, origin = found[key]
    return f"{key} = {value!r} (from {origin.where}) is refused: it must be {known[key].allowed}"
