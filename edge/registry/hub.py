"""The Hugging Face hub: which files a repository has, and where the bytes of one are.

The only importer of huggingface_hub, and only when it is called: importing takes longer than most commands. It is asked for
facts; the bytes come through `edge.registry.fetch` (docs/adr/0008-registry.md says why).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from edge.errors import DownloadFailed
from edge.registry.source import Hub, Located, NoSuchQuant, choose_quant, shown_url
from edge.registry.web import Interrupted

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 30.0
_MAY_PASS = frozenset({408, 429, 500, 502, 503, 504})


def locate(hub: Hub) -> Located:
    """Where the file is, how large, and which sum the hub states. Raises DownloadFailed, Interrupted."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the package is imported
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # what it says of its retries is said once, and in our words, when they are over
    endpoint, token = _endpoint(), get_token()
    with _worded(hub):
        file = hub.wanted if hub.names_file else _listed(hub, endpoint)
        url = hf_hub_url(hub.repo, file, revision=hub.revision, endpoint=endpoint)
        facts = get_hf_file_metadata(url, token=token, timeout=_TIMEOUT_S, endpoint=endpoint)
        commit = facts.commit_hash if facts.commit_hash and _COMMIT.fullmatch(facts.commit_hash) else hub.revision
        pinned = hf_hub_url(hub.repo, file, revision=commit, endpoint=endpoint)
    return Located(
        url=pinned,
        file=PurePosixPath(file).name,
        shown=shown_url(pinned),
        identity=f"hf:{hub.repo}@{commit}:{file}",
        headers={"authorization": f"Bearer {token}"} if token else {},
        size_bytes=facts.size,
        sha256=facts.etag if facts.etag and _SHA256.fullmatch(facts.etag) else None,
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _listed(hub: Hub, endpoint: str) -> str:
    from huggingface_hub import HfApi

    # Its listing of files takes no limit on the time, and would wait for ever for a hub that accepts and says nothing.
    found = HfApi(endpoint=endpoint).model_info(hub.repo, revision=hub.revision, timeout=_TIMEOUT_S)
    files = sorted(file.rfilename for file in found.siblings or [])
    try:
        return choose_quant(files, hub.wanted)
    except NoSuchQuant as error:
        raise DownloadFailed(f"{hub.repo} {error}") from None


@contextmanager
def _worded(hub: Hub) -> Iterator[None]:
    from huggingface_hub import errors

    host = urlsplit(_endpoint()).hostname or _endpoint()
    try:
        yield
    except errors.GatedRepoError:
        raise DownloadFailed(
            f"{hub.repo} asks for terms to be accepted: do that on its page, then set HF_TOKEN to a token of that account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DownloadFailed(
            f"{host} has no model {hub.repo}, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise DownloadFailed(f"{hub.repo} has no revision {hub.revision!r}") from None
    except errors.EntryNotFoundError:
        raise DownloadFailed(
            f"{hub.repo} has no file {hub.wanted!r}; a quantisation such as Q4_K_M instead of a name looks it up"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise DownloadFailed(
            "HF_HUB_OFFLINE is set, so the hub is not asked: unset it, or use `edge models add`"
        ) from None
    except errors.HFValidationError as error:
        raise DownloadFailed(f"{hub.repo} is no name of a repository: {error}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in _MAY_PASS:
            raise Interrupted(f"{host} answered {status}") from None
        words = "it does not know the token in HF_TOKEN" if status == 401 else f"it answered {status}"
        raise DownloadFailed(f"{host} cannot say where {hub.repo} is: {words}") from None
    except (ValueError, TypeError, LookupError):  # no JSON, or another than a hub's
        raise DownloadFailed(
            f"{host} does not answer as a hub does: a login page or a proxy may stand in between; open it with a browser, or "
            "check HF_ENDPOINT and HTTPS_PROXY"
        ) from None
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # of whichever HTTP client it uses
        raise Interrupted(f"{host} cannot be reached ({str(error) or type(error).__name__})") from None
