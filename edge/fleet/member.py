"""One upstream as this node sees it: its connections, whether it may be asked, what was learned of it, and its probes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

import httpx
import orjson

from edge.errors import ConfigurationError
from edge.fleet.breaker import Breaker
from edge.fleet.lanes import Lanes
from edge.fleet.learned import Learned
from edge.fleet.upstreams import Upstream

log = logging.getLogger(__name__)

_PROBE_WELL_S, _PROBE_ILL_S = 20.0, 2.0
_PROBE_TIMEOUT_S = 5.0
_MAX_PROBE_BYTES = 1 << 20
_DEFAULT_BUSY_S = 1.0
_LONGEST_BUSY_S = 60.0
_ERROR_BYTES = 4096
_REFUSED = orjson.dumps({"error": {"message": "refused by the fleet", "type": "invalid_request_error"}})
_PASSED_ON = frozenset({400, 413, 422})
"""The request's own fault: told to the caller, and no failure of the upstream."""
_WORDS = {"closed": "well again", "open": "left alone", "half-open": "on trial"}
_HINTS = {
    400: " (a gateway that does not let this node in? see `edge identity show`)",
    401: " (see its api_key_file)",
    403: " (see its api_key_file)",
    404: " (does its url end in /v1?)",
}


class FleetRefused(Exception):
    """An upstream refused the request itself: `status` and `body` are for the caller."""

    def __init__(self, upstream: str, status: int, body: bytes) -> None:
        super().__init__(f"{upstream} answered {status}")
        self.upstream = upstream
        self.status = status
        self.body = body


class TryFailed(Exception):
    """One try failed. `busy_s`: the upstream asked to be left alone for so long."""

    def __init__(self, reason: str, *, busy_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.busy_s = busy_s


class Member:
    """One upstream with its connection pool and what is known of it."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.breaker = Breaker()
        self.learned = Learned()
        self.models: tuple[str, ...] = ()
        self.lanes = Lanes(upstream)

    def may_be_asked(self, now_s: float) -> bool:
        """Its breaker and its bound allow one more request."""
        return self.breaker.allows(now_s) and not self.lanes.full

    def model_name(self, asked: str | None) -> str:
        """What it calls the model: `asked` None for the one that is served here."""
        return asked or self.upstream.model

    async def keep_probing(self) -> None:
        """Look at its health from time to time, oftener while it is not well. Runs until it is cancelled."""
        while True:
            reason = await self.probe()
            before = self.breaker.state
            if reason or before == "open":
                self.breaker.probed(not reason, reason)
            if self.breaker.state != before:
                fields = {"event": "upstream_" + self.breaker.state.replace("-", "_"), "reason": reason}
                log.warning(f"upstream {_WORDS[self.breaker.state]}", extra={"upstream": self.upstream.name, **fields})
            pause_s = _PROBE_WELL_S if self.breaker.state == "closed" else _PROBE_ILL_S
            for _ in range(int(pause_s / _PROBE_ILL_S)):
                await asyncio.sleep(_PROBE_ILL_S * random.uniform(0.75, 1.25))
                if self.breaker.state == "open":
                    break

    async def probe(self) -> str:
        """What is wrong with it, empty if nothing. Its list of models is what every such server has."""
        try:
            client, clean = self.lanes.take(), False
        except ConfigurationError as error:
            return error.message
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S), client.stream("GET", "models") as response:
                require_plain(response)
                data = b""
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > _MAX_PROBE_BYTES:
                        return "GET models answered too much"
            clean = True
            if response.status_code != httpx.codes.OK:
                return f"GET models answered {response.status_code}{_HINTS.get(response.status_code, '')}"
            self.models = tuple(str(entry["id"]) for entry in orjson.loads(data)["data"])
        except TimeoutError:
            return f"GET models had no answer within {_PROBE_TIMEOUT_S:g} s"
        except (TryFailed, httpx.HTTPError) as error:
            return words(error)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return "GET models answered nonsense"
        except Exception as error:
            log.error("probe failed", extra={"event": "bug", "upstream": self.upstream.name}, exc_info=error)
            return f"the client failed: {type(error).__name__}"
        finally:
            await self.lanes.give_back(client, clean=clean)
        return ""


async def require_ok(name: str, response: httpx.Response) -> None:
    """Raises TryFailed, or FleetRefused if the request itself is wrong."""
    status = response.status_code
    if status == httpx.codes.OK:
        return
    if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        raise TryFailed(f"it answered {status}", busy_s=_retry_after_s(response))
    if status in _PASSED_ON:
        raise FleetRefused(name, status, await _refusal(response))
    hint = " (does it know a model of that name? see fleet.model)" if status == httpx.codes.NOT_FOUND else ""
    raise TryFailed(f"it answered {status}{hint}")


async def _refusal(response: httpx.Response) -> bytes:
    """What the caller is told. Raises TryFailed if the server did not say it: the words of a gateway in between are about this
    node's certificate, say, and no caller's business. That a request is too large is the caller's, whoever says it."""
    data = b""
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > _ERROR_BYTES:
            break
    if "json" in response.headers.get("content-type", ""):
        if len(data) > _ERROR_BYTES:
            return _REFUSED
        with contextlib.suppress(orjson.JSONDecodeError):
            if isinstance(orjson.loads(data), dict):
                return data
    if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return _REFUSED
    raise TryFailed(
        f"it answered {response.status_code}, and not as the API does: a gateway that does not let this node in?"
    )


def require_plain(response: httpx.Response) -> None:
    """Raises TryFailed for a compressed answer: that was ruled out, and a few bytes of it can be gigabytes."""
    coding = response.headers.get("content-encoding", "identity")
    if coding not in ("", "identity"):
        raise TryFailed(f"it answers compressed ({coding[:20]}), though that was ruled out")


def _retry_after_s(response: httpx.Response) -> float:
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return min(max(float(response.headers[header]) * unit, 0.0), _LONGEST_BUSY_S)
    return _DEFAULT_BUSY_S


def words(error: Exception) -> str:
    """What went wrong with a try."""
    if isinstance(error, TryFailed):
        return error.reason
    if isinstance(error, httpx.TimeoutException):
        return "it went silent" if isinstance(error, httpx.ReadTimeout) else "no connection in time"
    return f"{type(error).__name__}: {error}"[:200]
