"""What a start takes beyond settings that are valid: keys, upstreams, files. Looked at before anything starts, and before a node
ends to begin anew: nobody may stand beside a box that does not come back."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import urlsplit

from edge.admission.policy import Mode
from edge.api import KeyStore
from edge.effective import Effective
from edge.errors import ConfigurationError
from edge.fleet.central import Central, FleetLimits
from edge.fleet.upstreams import read_upstreams
from edge.listener import is_loopback, is_loopback_address, require_tls_files
from edge.loading import pinned_prompts
from edge.settings import Settings

log = logging.getLogger(__name__)


def require_startable(effective: Effective) -> None:
    """Raises ConfigurationError where `edge serve` would not start with these settings, as far as that can be told beforehand."""
    settings = effective.settings
    require_tls_files(settings.server)
    require_keys(settings, KeyStore(effective.keys_file))
    mode_of(settings, has_fleet=bool(read_upstreams(settings.fleet, effective.home)))
    pinned_prompts(settings, effective.home)


def require_keys(settings: Settings, keys: KeyStore) -> bool:
    """Whether clients need an API key. Raises ConfigurationError where they do and there is none."""
    required = settings.auth.mode == "always" or not is_loopback(settings.server.host)
    if required and not keys.all():
        where = (
            f"{settings.server.host} can be reached from elsewhere"
            if settings.auth.mode == "auto"
            else "auth.mode is always"
        )
        raise ConfigurationError(f"{where}, which needs an API key, and there is none; make one: edge keys create NAME")
    return required


def mode_of(settings: Settings, *, has_fleet: bool) -> Mode:
    """The mode of admission, with `auto` decided. Raises ConfigurationError."""
    mode = settings.admission.mode
    if mode == "fleet" and not has_fleet:
        raise ConfigurationError("admission.mode is fleet, and no fleet is set; set fleet.url or fleet.file")
    if mode == "auto":
        return "fleet" if has_fleet else "best-effort"
    return mode


def build_fleet(settings: Settings, home: Path) -> Central | None:
    """The fleet's client, None where no fleet is set. Raises ConfigurationError."""
    fleet = settings.fleet
    upstreams = read_upstreams(fleet, home)
    if not upstreams:
        return None
    for upstream in upstreams:
        if upstream.api_key_file is not None and upstream.url.startswith("http://") and not _stays_here(upstream.url):
            log.warning(
                "the key of an upstream travels in the clear; use https",
                extra={"event": "upstream_in_the_clear", "upstream": upstream.name},
            )
    limits = FleetLimits(
        fleet.first_token_s, fleet.whole_answer_s, fleet.mib_per_hour << 20, fleet.cost_per_hour, fleet.retry_share
    )
    return Central(upstreams, limits)


def _stays_here(url: str) -> bool:
    """By its looks: to ask a name server that does not answer would hold up the start."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or is_loopback_address(host)
