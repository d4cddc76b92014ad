"""Names of images, as containerd and the kubelet read them."""

from __future__ import annotations

from dataclasses import dataclass

_DEFAULT_DOMAIN, _DEFAULT_PATH = "docker.io", "library/"


@dataclass(frozen=True, slots=True)
class ImageName:
    """A name in full: `docker.io/library/edge-node`, and a tag."""

    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


def is_full(text: str) -> bool:
    """Whether a name says its registry and a tag, so that nothing is filled in."""
    repository, tag = _split(text)
    return bool(tag) and _has_domain(repository)


def full_name(text: str) -> ImageName:
    """What the kubelet asks the runtime for when a pod names an image like this."""
    repository, tag = _split(text)
    if not _has_domain(repository):
        path = repository if "/" in repository else _DEFAULT_PATH + repository
        repository = f"{_DEFAULT_DOMAIN}/{path}"
    return ImageName(repository, tag or "latest")


def _split(text: str) -> tuple[str, str]:
    head, colon, tail = text.rpartition(":")
    return (head, tail) if colon and "/" not in tail else (text, "")


def _has_domain(repository: str) -> bool:
    first, slash, _ = repository.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")
