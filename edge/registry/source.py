"""Where a model's file comes from, as a person or a manifest writes it. Pure: nothing is asked here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from edge.errors import ModelUnusable
from edge.printable import printable

_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?(?::(?P<wanted>\S+))?")
_FORMS = "a source is file:/PATH, https://..., http://..., or hf:OWNER/REPO:FILE_OR_QUANT"
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Builtin:
    """Part of the installation, beside its manifest."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine, or of a stick that is plugged into it."""

    path: Path


@dataclass(frozen=True, slots=True)
class Web:
    """A file behind a plain address. The address may hold secrets: show it through `shown_url` only."""

    url: str


@dataclass(frozen=True, slots=True)
class Hub:
    """A file of a repository on the Hugging Face hub, or on what HF_ENDPOINT names.

    `wanted` is a path in the repository, or a quantisation such as Q4_K_M that one .gguf file there has; empty: the only one.
    """

    repo: str
    revision: str
    wanted: str

    @property
    def names_file(self) -> bool:
        """Whether `wanted` is a path; else it is a quantisation, or nothing."""
        return "." in self.wanted


Source = Builtin | LocalFile | Web | Hub


@dataclass(frozen=True, slots=True)
class Located:
    """One file that can be fetched over HTTP. `headers` go to the origin of `url` and nowhere else."""

    url: str
    file: str
    shown: str
    """For people and logs: no credentials, no query."""
    identity: str
    """The same for the same bytes, as far as that is known; it names the unfinished download."""
    headers: dict[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    sha256: str | None = None


def parse_source(text: str) -> Source:
    """Raises ValueError whose text says which forms there are."""
    if text == "builtin":
        return Builtin()
    if text.startswith("file:"):
        path = unquote(text.removeprefix("file://") if text.startswith("file://") else text.removeprefix("file:"))
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{text!r} needs a whole path, such as file:/media/stick/model.gguf")
        return LocalFile(Path(path))
    if text.startswith("hf:"):
        found = _HUB.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no file of the hub: write hf:OWNER/REPO:FILE_OR_QUANT")
        return Hub(found["repo"], found["revision"] or "main", found["wanted"] or "")
    if text.startswith(("https://", "http://")):
        try:
            host = urlsplit(text).hostname
        except ValueError as error:
            raise ValueError(f"the address cannot be read ({error}): {_FORMS}") from None
        if not host or not file_name(Web(text)):
            raise ValueError(f"{shown_url(text)!r} names no file")
        return Web(text)
    raise ValueError(f"{text!r} is no source: {_FORMS}")


def local_source(path: Path) -> str:
    """A whole path as a source, which `parse_source` reads as the same. Raises ModelUnusable."""
    return writable(f"file:{path}".replace("%", "%25"))


def writable(text: str) -> str:
    """The same, if it can be written down. Raises ModelUnusable for names of files that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ModelUnusable(f"{text!r} is no UTF-8, so it cannot be written down: rename the file") from None
    return text


def is_source(text: str) -> bool:
    """Whether it is meant as a source, and not as a model's name or a path."""
    return text.startswith(("hf:", "file:", "https://", "http://"))


def shown_url(url: str) -> str:
    """An address without what may be secret: user, password, query, fragment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


def shown(text: str) -> str:
    """A source for people and logs."""
    return shown_url(text) if text.startswith(("https://", "http://")) else text


def may_be_secret(text: str) -> bool:
    """Whether a source, written without credentials, is still nobody else's business: a signed address lets anybody in."""
    return "?" in text and text.startswith(("https://", "http://"))


def file_mode(*sources: str) -> int | None:
    """Of a file that names these: nobody else's where one may be secret; None: as the umask has it."""
    return 0o600 if any(map(may_be_secret, sources)) else None


def without_credentials(text: str) -> str:
    """A source as it may be written to a file: user and password left out, the query kept, since it may be the name."""
    if not text.startswith(("https://", "http://")):
        return text
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def file_name(source: Source) -> str:
    """The file's own name, without folders; empty where only the hub can tell."""
    match source:
        case LocalFile(path):
            return path.name
        case Web(url):
            name = PurePosixPath(unquote(urlsplit(url).path)).name  # a quoted slash is one
            return printable(name)
        case Hub() if source.names_file:
            return PurePosixPath(source.wanted).name
        case _:
            return ""


class NoSuchQuant(ValueError):
    """None of a repository's files, or several, are what was asked for. The text lists the candidates."""


def choose_quant(files: list[str], wanted: str) -> str:
    """The one .gguf file with this quantisation in its name. Raises NoSuchQuant."""
    models = [file for file in files if file.lower().endswith(".gguf") and not _is_projector(file)]
    pattern = re.compile(rf"(?:^|[-._/]){re.escape(wanted)}(?=[-./]|$)", re.IGNORECASE) if wanted else None
    fitting = [file for file in models if pattern is None or pattern.search(file[: -len(".gguf")])]
    fitting = [file for file in fitting if not _SPLIT.search(file)] or fitting
    if len(fitting) == 1 and not _SPLIT.search(fitting[0]):
        return fitting[0]
    what = f"{wanted!r}" if wanted else "a .gguf file"
    if not models:
        raise NoSuchQuant("has no .gguf file; name a file of it")
    if not fitting:
        raise NoSuchQuant(f"has no file for {what}; it has {', '.join(models)}")
    if all(_SPLIT.search(file) for file in fitting):
        raise NoSuchQuant(
            f"has {what} only in several parts, which this version does not join; it has {', '.join(models)}"
        )
    raise NoSuchQuant(f"has several files for {what}: name one of {', '.join(fitting)}")


def is_part(file: str) -> bool:
    """Whether a file's name says that it is one of several that make a model."""
    return _SPLIT.search(file) is not None


def _is_projector(file: str) -> bool:
    return PurePosixPath(file).name.lower().startswith(("mmproj", "imatrix"))
