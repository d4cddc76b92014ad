"""HTTP as downloads need it: redirects that carry no credentials away, and failures sorted into those worth another try
and those that are not."""

from __future__ import annotations

import contextlib
import email.utils
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx

from edge import __version__
from edge.errors import ConfigurationError, DownloadFailed
from edge.registry.digest import stated_sha256
from edge.registry.source import Located, shown_url

_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_RETRY_AFTER_S = 120.0
_TIMEOUT = httpx.Timeout(30.0, connect=15.0)
_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.ASCII)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
"""So many digits are a file's size; more cannot even be read as a number."""


class Absent(DownloadFailed):
    """The server says that there is no such file."""


class Interrupted(Exception):
    """The network or the server failed in a way that may pass. `retry_after_s`: what the server asked for, if it did."""

    def __init__(self, what: str, retry_after_s: float | None = None, *, reached: bool = True) -> None:
        super().__init__(what)
        self.what = what
        self.retry_after_s = retry_after_s
        self.reached = reached
        """Whether there was anybody at that address."""


@dataclass(frozen=True, slots=True)
class Span:
    """A Content-Range: first byte (None where the range was refused) and the whole file's size (None if not told)."""

    first: int | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a final answer. `sha256` is what any hop said of the whole file."""

    status: int
    response: httpx.Response
    sha256: str | None

    @property
    def span(self) -> Span | None:
        """The Content-Range, if there is a readable one."""
        found = _RANGE.fullmatch(self.response.headers.get("content-range", "").strip())
        if found is None:
            return None
        first, _, size = found.groups()
        return Span(None if first is None else int(first), None if size == "*" else int(size))

    @property
    def length(self) -> int | None:
        """Content-Length of this answer's body."""
        text = self.response.headers.get("content-length", "")
        return int(text) if _LENGTH.fullmatch(text) else None

    @property
    def validator(self) -> str | None:
        """What If-Range takes: a strong ETag, else the date (RFC 9110, 13.1.5)."""
        etag: str = self.response.headers.get("etag", "")
        date: str | None = self.response.headers.get("last-modified")
        return etag if etag.startswith('"') else date

    def contradicts(self, validator: str | None) -> bool:
        """Whether this is of another file than the answer with that validator."""
        if validator is None:
            return False
        now = self.response.headers.get("etag" if validator.startswith('"') else "last-modified")
        return now is not None and now.removeprefix("W/") != validator


def client() -> httpx.Client:
    """A client with proxies and certificates from the environment. Raises ConfigurationError when those are unusable."""
    try:
        return httpx.Client(
            timeout=_TIMEOUT,
            follow_redirects=False,
            headers={"user-agent": f"edge/{__version__}", "accept-encoding": "identity", "accept": "*/*"},
        )
    except (ValueError, ssl.SSLError, OSError, httpx.InvalidURL, ImportError) as error:
        raise ConfigurationError(
            f"the proxy or certificate settings in the environment cannot be used: {error}; look at HTTPS_PROXY, "
            "HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE"
        ) from None


@contextlib.contextmanager
def ask(web: httpx.Client, method: str, located: Located, headers: dict[str, str]) -> Iterator[Answer]:
    """Send a request and follow redirects; the body is not read yet. Raises Interrupted, DownloadFailed.

    Statuses 200, 206 and 416 come back, all others are raised.
    """
    with contextlib.ExitStack() as stack:
        try:
            answer = _follow(web, method, located, headers, stack)
        except httpx.HTTPError as error:
            raise _interrupted(error, located) from None
        except (httpx.InvalidURL, ValueError) as error:
            raise DownloadFailed(f"{located.shown} cannot be asked for: {error}") from None
        _judge(answer, located)
        yield answer


def chunks(answer: Answer, located: Located) -> Iterator[bytes]:
    """The body as it comes. Raises Interrupted when it breaks off."""
    try:
        yield from answer.response.iter_raw()
    except httpx.HTTPError as error:
        raise _interrupted(error, located) from None


def _follow(
    web: httpx.Client, method: str, located: Located, headers: dict[str, str], stack: contextlib.ExitStack
) -> Answer:
    url, sha256 = located.url, None
    for _ in range(_MOST_REDIRECTS + 1):
        private = located.headers if _origin(url) == _origin(located.url) else {}
        response = web.send(web.build_request(method, url, headers={**headers, **private}), stream=True)
        stack.callback(response.close)
        sha256 = sha256 or stated_sha256(response.headers)
        target = response.headers.get("location")
        if response.status_code not in _REDIRECTS or target is None:
            return Answer(response.status_code, response, sha256)
        response.close()
        url = _next(url, target, located)
    raise DownloadFailed(f"{located.shown} sends from one address to the next, more than {_MOST_REDIRECTS} times")


def _next(url: str, target: str, located: Located) -> str:
    following = urljoin(url, target)
    old, new = urlsplit(url).scheme, urlsplit(following).scheme
    if new not in ("http", "https"):
        raise DownloadFailed(f"{located.shown} sends on to {shown_url(following)}, which is no web address")
    if old == "https" and new == "http":
        raise DownloadFailed(f"{located.shown} sends on from https to plain http ({shown_url(following)}): refused")
    return following


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _judge(answer: Answer, located: Located) -> None:
    status = answer.status
    if status in (200, 206, 416):
        coding = answer.response.headers.get("content-encoding", "identity")
        if coding not in ("", "identity"):
            raise DownloadFailed(f"{located.shown} comes compressed ({coding}) though that was ruled out: refused")
        return
    host = urlsplit(located.shown).hostname or located.shown
    if status in _WORTH_A_RETRY:
        raise Interrupted(f"{host} answered {status}", _retry_after_s(answer.response.headers.get("retry-after")))
    if status in (401, 403, 407):
        cure = "it wants credentials; for the hub set HF_TOKEN, and accept the model's terms on its page"
        if status == 407:
            cure = "put user and password of the proxy into HTTPS_PROXY or HTTP_PROXY"
        raise DownloadFailed(f"{located.shown} is refused ({status}): {cure}")
    if status in (404, 410):
        raise Absent(f"{located.shown} is not there ({status}); check the name")
    raise DownloadFailed(f"{located.shown} cannot be had: {host} answered {status}")


def _retry_after_s(text: str | None) -> float | None:
    """Seconds or a date (RFC 9110, 10.2.3), bounded."""
    if not text:
        return None
    try:
        wait_s = float(text) if text.isdecimal() else email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return min(max(wait_s, 0.0), _LONGEST_RETRY_AFTER_S)


def _interrupted(error: httpx.HTTPError, located: Located) -> Interrupted | DownloadFailed:
    host = urlsplit(located.shown).hostname or located.shown
    if isinstance(error, httpx.UnsupportedProtocol):
        return DownloadFailed(f"{located.shown} cannot be asked for: {error}")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return DownloadFailed(
            f"the certificate of {host} is not trusted here ({error}); if your own CA signed it, name its file in SSL_CERT_FILE"
        )
    if isinstance(error, httpx.ProxyError) and "407" in str(error):
        return DownloadFailed(
            f"the proxy wants credentials ({error}): put user and password into HTTPS_PROXY or HTTP_PROXY"
        )
    if isinstance(error, httpx.ProxyError):
        return Interrupted(f"the proxy refused or failed: {error}")
    if isinstance(error, httpx.ConnectTimeout):
        return Interrupted(f"{host} does not take the connection", reached=False)
    if isinstance(error, httpx.TimeoutException):
        return Interrupted(f"{host} sent nothing for {_TIMEOUT.read:.0f} s")
    if isinstance(error, httpx.ConnectError):
        return Interrupted(f"{host} cannot be reached: {error}", reached=False)
    return Interrupted(f"the connection to {host} broke off")
