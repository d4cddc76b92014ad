"""The node's side of EST (RFC 7030, 8951) and of the bootstrap: requests out, bounded answers in. Decides nothing.

Each request has a connection of its own, 15 s for everything, and 64 KiB for the answer. Nothing secret travels before the server
has shown a certificate of the CA that is trusted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import httpx

from edge import __version__
from edge.durable import Before, unwatched
from edge.errors import EnrollmentFailed, EnrollmentUnreachable, PinMismatch
from edge.identity import applied
from edge.identity.certificates import pem
from edge.identity.token import EnrollmentToken
from edge.identity.trust import Anchors
from edge.identity.wire import BOOTSTRAP_PATH, EST_PATH, MOST_BYTES, REASON_HEADER, Reason

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: the chain is checked, the dates in it are not."""
_WHOLE_S = 15.0
_CONNECT_S = 8.0
_LEAST_RETRY_S, _LONGEST_RETRY_S, _USUAL_RETRY_S = 1.0, 3600.0, 10.0
_WRONG_DATES = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED."""
_WRONG_NAME = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH."""


def origin(url: str) -> str:
    """The fleet's address as it is used: https://host[:port]. Raises ValueError with what is wrong."""
    parts = urlsplit(url.strip())
    if parts.scheme != "https":
        raise ValueError("the fleet's address must begin with https://")
    if parts.username is not None or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError("the fleet's address is https://host[:port] and nothing more; the token is given apart")
    if not parts.hostname or parts.port == 0:
        raise ValueError("the fleet's address has no host, or a port that is none")
    try:
        _ = httpx.URL(f"https://{parts.netloc}").host
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"the fleet's address is none: {error}") from None
    return f"https://{parts.netloc.lower()}"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose server certificates are taken. `check_dates` False: the clock is not to be believed."""

    anchors: Anchors
    check_dates: bool

    def context(self, credentials: Path | None = None) -> ssl.SSLContext:
        """For a TLS client; `credentials` is a directory with the node's certificate and key. Raises EnrollmentFailed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=pem(self.anchors.all).decode())
        if not self.check_dates:
            context.verify_flags |= NO_CHECK_TIME
        if credentials is not None:
            try:
                context.load_cert_chain(
                    credentials / applied.CERTIFICATE, credentials / applied.KEY, password=lambda: ""
                )
            except OSError as error:
                raise EnrollmentFailed(f"certificate and key in {credentials} cannot be used: {error}") from None
        return context


@dataclass(frozen=True, slots=True)
class Answer:
    """What the fleet said. `reason` is empty where it did not say one that we know; `date_s` is its clock, 0 if unsaid."""

    status: int
    body: bytes
    reason: str
    retry_after_s: float
    date_s: float


class FleetClient:
    """One fleet's address. `before` is told before each request leaves and when its answer has come. Methods raise
    EnrollmentUnreachable, PinMismatch, EnrollmentFailed."""

    def __init__(self, url: str, before: Before = unwatched, *, whole_s: float = _WHOLE_S) -> None:
        self.url = url
        self._before, self._whole_s = before, whole_s

    async def look_at_authorities(self) -> Answer:
        """/cacerts of whoever answers there: nothing is trusted yet, and nothing is told."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return await self._ask("GET", f"{EST_PATH}/cacerts", context)

    async def authorities(self, trust: Trust) -> Answer:
        """/cacerts of a server that is trusted."""
        return await self._ask("GET", f"{EST_PATH}/cacerts", trust.context())

    async def enroll(self, trust: Trust, token: EnrollmentToken, request: bytes) -> Answer:
        """/simpleenroll with the token as name and password."""
        basic = base64.b64encode(f"{token.id}:{token.secret}".encode()).decode()
        headers = {"authorization": f"Basic {basic}"}
        return await self._ask("POST", f"{EST_PATH}/simpleenroll", trust.context(), request, headers)

    async def renew(self, trust: Trust, credentials: Path, request: bytes) -> Answer:
        """/simplereenroll with the certificate that there is."""
        return await self._ask("POST", f"{EST_PATH}/simplereenroll", trust.context(credentials), request)

    async def bootstrap(self, trust: Trust, credentials: Path) -> Answer:
        """What this node is to do."""
        return await self._ask("GET", BOOTSTRAP_PATH, trust.context(credentials))

    async def _ask(
        self,
        method: str,
        path: str,
        context: ssl.SSLContext,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        name = path.rpartition("/")[2]
        self._before(f"ask {name}")
        kind = {"content-type": "application/pkcs10"} if body is not None else {}
        always = {"user-agent": f"edge/{__version__}", "accept-encoding": "identity"}
        transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
        try:
            async with (
                asyncio.timeout(self._whole_s),
                httpx.AsyncClient(
                    transport=transport, timeout=httpx.Timeout(self._whole_s, connect=_CONNECT_S)
                ) as client,
                client.stream(
                    method, self.url + path, content=body, headers={**always, **kind, **(headers or {})}
                ) as answer,
            ):
                data = await self._read(answer, name)
        except (TimeoutError, httpx.TimeoutException):
            raise EnrollmentUnreachable(f"the fleet at {self.url} does not answer ({name}) in time") from None
        except httpx.HTTPError as error:
            raise self._failure(error, name) from None
        self._before(f"heard {name}")
        return _answer(answer, data)

    async def _read(self, answer: httpx.Response, name: str) -> bytes:
        data = b""
        async for chunk in answer.aiter_raw():
            data += chunk
            if len(data) > MOST_BYTES:
                raise EnrollmentUnreachable(
                    f"what answers at {self.url} says more than {MOST_BYTES >> 10} KiB to {name}: that is no fleet"
                )
        return data

    def _failure(self, error: httpx.HTTPError, name: str) -> EnrollmentFailed:
        tls = _tls_error(error)
        if isinstance(tls, ssl.SSLCertVerificationError):
            return self._unverified(tls)
        if tls is not None:
            return EnrollmentUnreachable(f"TLS with the fleet at {self.url} failed ({name}): {tls.reason or tls}")
        said = str(error) or type(error).__name__
        return EnrollmentUnreachable(f"the fleet at {self.url} cannot be reached ({name}): {said}")

    def _unverified(self, error: ssl.SSLCertVerificationError) -> EnrollmentFailed:
        if error.verify_code in _WRONG_DATES:
            return EnrollmentFailed(
                f"the certificate of the fleet at {self.url} does not hold at this node's time ({error.verify_message}): is "
                "the clock right? See `date`, and the server's certificate"
            )
        if error.verify_code in _WRONG_NAME:
            return EnrollmentFailed(
                f"the fleet's certificate is not made for the name in {self.url} ({error.verify_message}): use the name that "
                "it has, or give it this one"
            )
        return PinMismatch(
            f"the server at {self.url} shows a certificate that the fleet's CA has not signed ({error.verify_message}): the "
            "address is another's, or somebody stands in between; nothing was sent to it"
        )


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """httpx wraps what happened, twice."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _answer(answer: httpx.Response, data: bytes) -> Answer:
    reason = answer.headers.get(REASON_HEADER, "")
    return Answer(
        answer.status_code,
        data,
        reason if reason in get_args(Reason) else "",
        _retry_after_s(answer.headers.get("retry-after", ""), _date_s(answer.headers.get("date", ""))),
        _date_s(answer.headers.get("date", "")),
    )


def _retry_after_s(text: str, now_s: float) -> float:
    """Seconds or a date (RFC 9110 section 10.2.3), within bounds."""
    found = _USUAL_RETRY_S
    with contextlib.suppress(ValueError):
        found = float(text)
    if found == _USUAL_RETRY_S and (at_s := _date_s(text)) and now_s:
        found = at_s - now_s
    return min(max(found, _LEAST_RETRY_S), _LONGEST_RETRY_S) if found == found else _USUAL_RETRY_S


def _date_s(text: str) -> float:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return email.utils.parsedate_to_datetime(text).timestamp()
    return 0.0
