"""A look-alike of the hub, as far as the real huggingface_hub client and a download look at it: the listing of a repository,
the head of a file with its commit, size and sum, and a redirect to another host that has the bytes."""

from __future__ import annotations

import hashlib
import json
import re
from types import TracebackType

from bench.file_server import Asked, FileServer, Served, Status

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")
_ABOUT = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/?]+)(?:\?.*)?")


class HubLookalike(FileServer):
    """`files` by repository and path. Small text files lie in git, all others in large storage on `cdn`."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.token = ""
        self.cdn = FileServer("127.0.0.2")  # another host, to which no token may go

    def __enter__(self) -> HubLookalike:
        self.cdn.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.cdn.__exit__(kind, error, trace)

    def answer(self, asked: Asked) -> Served | Status:
        about, resolve = _ABOUT.fullmatch(asked.path), _RESOLVE.fullmatch(asked.path)
        found = about or resolve
        if found is None or found["repo"] not in self.files:
            return _error(401, "RepoNotFound", "Invalid username or password.")
        repo = found["repo"]
        if repo in self.gated and asked.headers.get("authorization") != f"Bearer {self.token}":
            return _error(403, "GatedRepo", f"Access to model {repo} is restricted.")
        if found["revision"] not in ("main", COMMIT):
            return _error(404, "RevisionNotFound", "Invalid rev id")
        return self._about(repo) if about is not None else self._resolve(repo, found["file"], found["revision"])

    def _about(self, repo: str) -> Served:
        about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": path} for path in self.files[repo]]}
        return Served(json.dumps(about).encode(), stated={"content-type": "application/json"})

    def _resolve(self, repo: str, path: str, revision: str) -> Served | Status:
        data = self.files[repo].get(path)
        if data is None:
            return _error(404, "EntryNotFound", "Entry not found", {"x-repo-commit": COMMIT})
        if not _large(path):
            return Served(data, etag=f'"{_git(data)}"', stated={"x-repo-commit": COMMIT})
        place = f"/{repo}/{_sha(data)}"
        self.cdn.routes.setdefault(place, Served(data, etag='"cdn"'))
        return Status(
            302,
            {
                "location": f"{self.cdn.url}{place}?X-Amz-Signature=secret",
                "x-repo-commit": COMMIT,
                "x-linked-etag": f'"{_sha(data)}"',
                "x-linked-size": str(len(data)),
                "etag": f'"{_git(data)}"',
            },
        )


def _error(code: int, name: str, text: str, headers: dict[str, str] | None = None) -> Status:
    return Status(code, {"x-error-code": name, "x-error-message": text, **(headers or {})})


def _large(path: str) -> bool:
    return not path.endswith((".json", ".md"))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
