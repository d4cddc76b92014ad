"""What was decided, made to hold: the broker's access list and the gateways' revocation list, written from the database.

The list names each active node and grants it its own topics; whoever is not in it may nothing. Both files are written whole and
only when they change, under a lock: commands and the server may do it at the same time.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edge.control.authority import Authority
from edge.control.database import Database
from edge.control.enrollment import issuer_id
from edge.control.files import PRIVATE, PUBLIC, write_file, write_if_changed
from edge.control.nodes import active, revoked_certificates, revoked_since
from edge.control.settings import FleetHome, FleetSettings
from edge.control.x509 import CRL_LIFE, issue_node, key_pem, make_crl, new_key, now_utc, pem
from edge.durable import locked
from edge.errors import ConfigurationError
from edge.telemetry.mqtt import BrokerAddress, Connection, ConnectionFailed, Handlers

log = logging.getLogger(__name__)

SINK, COMMANDER = "fleet-sink", "fleet-commander"
_REFRESH = timedelta(days=1)
_COMMAND_S = 10.0
_FRESH_S = 60.0
"""So long after its revocation a node's session is looked for."""

_CONFIG = """\
# Written by edge; changes are lost. Run it as the user that `edge fleet serve` runs as: mosquitto -c {home}/mosquitto.conf
per_listener_settings false
listener {port}
allow_anonymous false
cafile {home}/ca.pem
certfile {home}/server.pem
keyfile {home}/server.key
require_certificate true
use_identity_as_username true
use_username_as_clientid true
crlfile {home}/revoked.pem
acl_file {home}/acl
pid_file {home}/mosquitto.pid
persistence true
persistence_location {home}/
max_queued_messages 10000
max_packet_size 1048576
log_dest stderr
connection_messages false
user {user}
"""


def broker_config(home: Path, port: int) -> str:
    """mosquitto.conf. Started by root, mosquitto becomes the user who owns the files."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container without that user in /etc/passwd: mosquitto is not root either, and does not look
        user = "mosquitto"
    return _CONFIG.format(home=home.absolute(), port=port, user=user)


def access_list(nodes: Iterable[tuple[str, str]]) -> str:
    """mosquitto's ACL file for (node, group): default deny, and what each may."""
    parts = [
        "# Written by edge from the fleet's database; changes are lost. Who is not named may nothing.\n\n"
        f"user {SINK}\ntopic read edge/v1/+/+/up/#\ntopic write edge/v1/+/+/down/ack\n\n"
        f"user {COMMANDER}\ntopic read edge/v1/+/+/up/#\n"
        "topic write edge/v1/+/+/down/cmd/+\ntopic write edge/v1/+/+/down/desired\n"
    ]
    parts += [
        f"\nuser {node}\ntopic write edge/v1/{group}/{node}/up/#\ntopic read edge/v1/{group}/{node}/down/#\n"
        for node, group in nodes
    ]
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Enforced:
    """What came of it. `broker` and `gateway`: why they could not be told to read their lists; empty if they were, or do not
    run."""

    broker: str
    gateway: str
    nodes: int
    """So many are in the access list."""


def enforce(
    home: FleetHome, settings: FleetSettings, authority: Authority, database: Database, ended: set[str]
) -> Enforced:
    """Bring the lists to what the database says, have who reads them read them, and end the sessions of nodes that were just
    revoked and are not in `ended`, where they are put then. Raises ConfigurationError if a file cannot be written."""
    with locked(home.lock, "the access list", wait=True):
        now = now_utc()
        with database.read() as session:
            allowed = list(active(session))
            revoked = revoked_certificates(session, (now - timedelta(days=1)).timestamp())
            fresh = revoked_since(session, now.timestamp() - _FRESH_S)
        write_if_changed(home.gateway / "ca.pem", authority.anchors, PUBLIC)
        path, command = home.gateway / "revoked.pem", settings.gateway.reload_command
        crl = path.read_bytes() if path.exists() else b""
        crl = revocation_list(authority, revoked, crl, now)
        files = {
            home.broker / "revoked.pem": (crl, PUBLIC),
            home.broker / "acl": (access_list(allowed).encode(), PRIVATE),
        }
        broker = _publish(files, home.broker / ".untold", lambda: reload_broker(home, settings))
        gateway = _publish({path: (crl, PUBLIC)}, home.gateway / ".untold", lambda: _run(command) if command else "")
    for node in fresh:
        if node not in ended:
            end_session(home, settings, authority, node)
            ended.add(node)
    return Enforced(broker, gateway, len(allowed))


def _publish(files: dict[Path, tuple[bytes, int]], mark: Path, tell: Callable[[], str]) -> str:
    """Write files and tell their reader; why that was not possible, or nothing. The mark says that the reader is still to be
    told: a process that is killed in between, or a reload that failed, leaves it to the next one."""
    for path, (data, mode) in files.items():
        if not path.exists() or path.read_bytes() != data:
            write_file(mark, b"", PRIVATE)
            write_file(path, data, mode)
    if not mark.exists():
        return ""
    if not (problem := tell()):
        mark.unlink(missing_ok=True)
    return problem


def reload_broker(home: FleetHome, settings: FleetSettings) -> str:
    """Have the broker read its lists and certificates again. Why not, or nothing: also if there is no pid file, since a broker
    that does not run reads them when it starts. One that names no broker may be of a broker elsewhere, in a container say."""
    if settings.broker.reload_command:
        return _run(settings.broker.reload_command)
    pid_file = home.broker / "mosquitto.pid"
    try:
        text = pid_file.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return (
            f"{pid_file} cannot be read: {error.strerror}; run mosquitto as this user, or set [broker] reload_command"
        )
    lost = (
        f"{pid_file} names no running mosquitto ({text[:20] or 'it is empty'}); if it runs elsewhere, set [broker] "
        "reload_command; if it was cut off, start it"
    )
    if not (text.isascii() and text.isdecimal()):
        return lost
    pid = int(text)
    try:
        if b"mosquitto" not in Path(f"/proc/{pid}/cmdline").read_bytes():  # a number that is somebody else's by now
            return lost
        os.kill(pid, signal.SIGHUP)
    except (FileNotFoundError, ProcessLookupError):
        return lost
    except OSError as error:
        return f"SIGHUP to process {pid}: {error.strerror}; run mosquitto as this user, or set [broker] reload_command"
    return ""


def end_session(home: FleetHome, settings: FleetSettings, authority: Authority, node: str) -> None:
    """Have the broker drop a node's connection: mosquitto takes the certificate's name as the client's, so who comes with the
    same name takes the session over, and this authority can make a certificate of any name. A failure is logged."""
    url, draft = settings.broker.sink_url or settings.broker.url, home.tls / f".{node}.{secrets.token_hex(4)}"
    if url is None or not (settings.broker.reload_command or (home.broker / "mosquitto.pid").exists()):
        return
    key, now = new_key(), now_utc()
    made = issue_node(authority.issuer, key.public_key(), settings.name, node, now, timedelta(minutes=5))
    try:
        write_file(draft, pem(made, *authority.chain) + key_pem(key), PRIVATE)
        connection = Connection(
            BrokerAddress(url, node, ca_file=home.tls / "ca.pem", cert_file=draft, key_file=draft), Handlers()
        )
        connection.open()
        connection.close()
    except (ConnectionFailed, ConfigurationError) as error:
        log.warning(
            "a session may still be open", extra={"event": "fleet_session_open", "node": node, "reason": str(error)}
        )
    finally:
        draft.unlink(missing_ok=True)


def write_broker_trust(home: FleetHome, authority: Authority, server_pem: bytes, server_key: bytes) -> bool:
    """The broker's certificate, and whom it trusts. Whether anything changed."""
    changed = write_if_changed(home.broker / "ca.pem", authority.anchors)
    changed |= write_if_changed(home.broker / "server.key", server_key, PRIVATE)
    changed |= write_if_changed(home.broker / "server.pem", server_pem)
    return changed


def revocation_list(authority: Authority, revoked: list[tuple[str, str, float]], before: bytes, now: datetime) -> bytes:
    """The list that is to hold: the one before, or another. Pure."""
    return _revocations(authority, revoked, before, now) if _stale(before, authority, revoked, now) else before


def _revocations(authority: Authority, revoked: list[tuple[str, str, float]], before: bytes, now: datetime) -> bytes:
    """One list for each authority, the roots' too: nginx wants one for every link of the chain."""
    # OpenSSL takes the list with the later begin, and the first that it saw of two with the same: none begins when another did.
    begin, last = now - timedelta(hours=1), _begin_of(before)
    if last <= now or not authority.believes(now):
        begin = max(begin, last + timedelta(seconds=1))
    # Else the clock was ahead then: that list lets nobody in, and gives way to one that holds now.
    end = max(now, begin) + CRL_LIFE
    lists = []
    for issuer in authority.issuers:
        mine = issuer_id(issuer.certificate)
        entries = [
            (int(serial, 16), datetime.fromtimestamp(int(when), UTC))
            for owner, serial, when in revoked
            if owner == mine
        ]
        lists.append(make_crl(issuer, entries, begin, end).public_bytes(serialization.Encoding.PEM))
    return b"".join([*lists, *authority.root_crls])


def _lists(text: bytes) -> list[x509.CertificateRevocationList]:
    """Raises ValueError."""
    return [x509.load_pem_x509_crl(b"-----BEGIN" + block) for block in text.split(b"-----BEGIN")[1:]]


def _begin_of(text: bytes) -> datetime:
    try:
        return max((found.last_update_utc for found in _lists(text)), default=datetime.fromtimestamp(0, UTC))
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _stale(text: bytes, authority: Authority, revoked: list[tuple[str, str, float]], now: datetime) -> bool:
    """Whether the list says something else than it should, or will end before anybody looks again."""
    try:
        lists = _lists(text)[: len(authority.issuers)]
    except ValueError:
        return True
    told = {f"{entry.serial_number:x}" for found in lists for entry in found}
    ours = {issuer_id(issuer.certificate) for issuer in authority.issuers}
    if [found.issuer for found in lists] != [issuer.certificate.subject for issuer in authority.issuers]:
        return True
    if not text.endswith(b"".join(authority.root_crls)) or told != {
        serial for owner, serial, _ in revoked if owner in ours
    }:
        return True
    return authority.believes(now) and any(not now - _REFRESH <= found.last_update_utc <= now for found in lists)


def _run(command: tuple[str, ...]) -> str:
    """Why it failed; empty if it did not."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMMAND_S, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return f"{command[0]} took longer than {_COMMAND_S:g} s"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    said = done.stderr.decode("utf-8", "replace").strip()[-300:]
    return f"{command[0]} ended with {done.returncode}: {said}" if done.returncode else ""
