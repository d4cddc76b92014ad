"""Which upstreams there are: `fleet.file`, a TOML file with one `[[upstream]]` each, or the one of `fleet.url`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edge.errors import ConfigurationError, NotYet
from edge.settings import Fleet, holds_credentials

MAX_UPSTREAMS = 32
_MAX_FILE_BYTES = 1 << 20

Seconds = Annotated[float, Gt(0), Le(3600)]


class Upstream(BaseModel):
    """One OpenAI-compatible server. Paths are relative to EDGE_HOME."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, MinLen(1)]
    url: str
    """Ends before `/chat/completions`, as a client's `base_url` does."""
    model: str = ""
    """What it calls the model that is served here; empty: the same name."""
    priority: Annotated[int, Ge(0)] = 1
    """Lower ones are asked first."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Its share among those of the same priority."""
    api_key_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    proxy: str | None = None
    connect_timeout_s: Seconds = 2.0
    first_token_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 30.0
    """Longest silence in the middle of an answer."""
    max_in_flight: Annotated[int, Ge(1), Le(4096)] = 512
    """Most requests at one time."""
    continues: bool = True
    """It goes on with an answer that was begun if the request says `continue_final_message` (vLLM, SGLang, llama-server, edge).
    An upstream that begins anew all the same is noticed."""
    cost_per_million_tokens: Annotated[float, Ge(0)] = 0.0

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        if holds_credentials(url):
            raise ValueError("must hold no user and no password: use api_key_file")
        try:
            parts = urlsplit(url)
            if not parts.hostname or parts.port == 0:
                raise ValueError
        except ValueError:
            raise ValueError("has no host, or a port that is none") from None
        return url.rstrip("/")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    upstream: list[Upstream] = Field(max_length=MAX_UPSTREAMS)


def read_upstreams(settings: Fleet, home: Path) -> list[Upstream]:
    """All upstreams with absolute paths; none where no fleet is set. Raises ConfigurationError."""
    if settings.url and settings.file:
        raise ConfigurationError("fleet.url and fleet.file are both set; name all upstreams in the file")
    if settings.url:
        try:
            one = Upstream(
                name="fleet",
                url=settings.url,
                model=settings.model,
                api_key_file=settings.api_key_file,
                ca_file=settings.ca_file,
                cert_file=settings.cert_file,
                key_file=settings.key_file,
            )
        except ValidationError as error:
            raise ConfigurationError(f"fleet.{_first(error)}") from None
        return [_absolute(one, home)]
    if settings.file is None:
        return []
    found = _from_file(home / settings.file).upstream
    names = [upstream.name for upstream in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"{settings.file}: two upstreams are called {twice!r}; give each a name of its own")
    return [_absolute(upstream, home) for upstream in found]


def _from_file(path: Path) -> _File:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigurationError(
                f"fleet.file {path} is over {_MAX_FILE_BYTES >> 20} MiB; that is no list of upstreams"
            )
        return _File.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise NotYet(f"fleet.file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"fleet.file {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        raise ConfigurationError(f"fleet.file {path}: {_first(error)}") from None


def _absolute(upstream: Upstream, home: Path) -> Upstream:
    fields = ("api_key_file", "ca_file", "cert_file", "key_file")
    paths = {name: home / path for name in fields if (path := getattr(upstream, name)) is not None}
    for name, path in paths.items():
        if not path.is_file():
            raise NotYet(f"upstream {upstream.name!r}: {name} {path} is no file")
    return upstream.model_copy(update=paths)


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"])
    return f"{where}: {found['msg'].removeprefix('Value error, ')}"
