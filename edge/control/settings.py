"""The fleet's directory and its settings file, `fleet.toml`."""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.errors import ConfigurationError, EnrollmentFailed
from edge.identity.applied import settings_of
from edge.identity.wire import Bootstrap, Fallback, MqttPlace, Renewal
from edge.settings import holds_credentials

Port = Annotated[int, Ge(0), Le(65_535)]
PREFIX = "edge/v1/{group}/{node}/"
"""Of the topics; the access list is written for it."""


def _without_credentials(url: str) -> str:
    if holds_credentials(url):
        raise ValueError("an address must hold no user and no password; nodes and the sink show their certificates")
    return url


def _without_port(host: str) -> str:
    if ":" in host:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(
                f"{host} is neither a name nor an address: give it without a port, which stands in [est]"
            ) from None
    return host


HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:\-]{0,252}$"), AfterValidator(_without_port)]
BrokerUrl = Annotated[str, Field(pattern=r"^mqtts?://[^\s]+$"), MaxLen(512), AfterValidator(_without_credentials)]
ServerUrl = Annotated[str, Field(pattern=r"^https?://[^\s]+$"), MaxLen(512), AfterValidator(_without_credentials)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Est(_Section):
    """The listener for nodes: enrollment and bootstrap."""

    host: Annotated[str, MinLen(1)] = Field("0.0.0.0", description="Address to listen on.")
    port: Port = Field(8443, description="TCP port.")
    max_connections: Annotated[int, Ge(1), Le(100_000)] = Field(1000, description="Connections open at one time.")
    timeout_s: Annotated[float, Gt(0), Le(600)] = Field(
        10.0, description="Time a client has for the TLS handshake, for a request's head, and for its body."
    )


class Admin(_Section):
    """The listener for people: the page and the JSON API."""

    host: Annotated[str, MinLen(1)] = Field(
        "127.0.0.1", description="Address to listen on; others than loopback need TLS."
    )
    port: Port = Field(8444, description="TCP port.")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain that browsers see.")
    tls_key: Path | None = Field(None, description="PEM file with its key.")
    session_hours: Annotated[float, Gt(0), Le(24 * 30)] = Field(12.0, description="How long a sign-in holds.")


class Broker(_Section):
    """The MQTT broker, whose access list is written here."""

    url: BrokerUrl | None = Field(
        None, description="Where nodes find it. Without it nodes get no telemetry settings, and no sink runs."
    )
    sink_url: BrokerUrl | None = Field(None, description="Where this server finds it, if that is another address.")
    port: Port = Field(8883, description="Where mosquitto listens, in the configuration that is written.")
    reload_command: tuple[str, ...] = Field(
        (),
        description="Run to have the broker read its lists anew. Without it: SIGHUP to the process in broker/mosquitto.pid.",
    )


class Telemetry(_Section):
    """What nodes tell."""

    keep_days: Annotated[float, Ge(0), Le(36_500)] = Field(
        30.0, description="How long it stays in telemetry.db: about 40 MB a day for each node. 0: for ever."
    )


class Nodes(_Section):
    """What nodes get."""

    certificate_days: Annotated[float, Gt(0), Le(825)] = Field(30.0, description="Life of a node's certificate.")
    renew_at_share: Annotated[float, Gt(0), Lt(1)] = Field(2 / 3, description="Share of it after which a node renews.")
    grace_days: Annotated[float, Ge(0), Le(3650)] = Field(
        30.0, description="How long after its end a certificate still may be renewed."
    )
    retry_after_s: Annotated[int, Ge(1), Le(86_400)] = Field(
        30, description="When a node that waits for approval is to ask again."
    )
    fallback_url: ServerUrl | None = Field(
        None, description="OpenAI-compatible server for what nodes cannot answer in time."
    )
    fallback_model: Annotated[str, MaxLen(256)] = Field("", description="What the main model is called there.")
    fallback_ca: Literal["fleet", "system"] = Field(
        "fleet", description="Who signed its certificate: this fleet's authority, or one that every system knows."
    )


class Gateway(_Section):
    """Gateways that let nodes in by their certificates."""

    reload_command: tuple[str, ...] = Field((), description="Run after gateway/revoked.pem has changed.")


class FleetSettings(_Section):
    """All of fleet.toml."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]{0,62}$")] = Field("fleet", description="Part of each node's identity; never change it.")  # fmt: skip  # noqa: E501
    hosts: Annotated[tuple[HostName, ...], MinLen(1), MaxLen(32)] = Field(
        ("localhost", "127.0.0.1"), description="Names and addresses in the servers' certificates."
    )
    est: Est = Est()
    admin: Admin = Admin()
    broker: Broker = Broker()
    telemetry: Telemetry = Telemetry()
    nodes: Nodes = Nodes()
    gateway: Gateway = Gateway()

    @model_validator(mode="after")
    def _is_such_as_nodes_take(self) -> Self:
        """What they refuse keeps all of them from enrolling and renewing."""
        try:
            settings_of(Bootstrap(fleet=self.name, node="node", mqtt=self.mqtt, fallback=self.fallback))
        except EnrollmentFailed as refused:
            raise ValueError(f"nodes refuse this: {refused.message}") from None
        return self

    @property
    def nodes_url(self) -> str:
        """Where nodes enroll: the first name of `hosts`."""
        host = self.hosts[0]
        port = "" if self.est.port == 443 else f":{self.est.port}"
        return f"https://{f'[{host}]' if ':' in host else host}{port}"

    @property
    def mqtt(self) -> MqttPlace | None:
        """What nodes are told of the broker."""
        return None if self.broker.url is None else MqttPlace(url=self.broker.url, prefix=PREFIX)

    @property
    def fallback(self) -> Fallback | None:
        """What nodes are told of the central fleet."""
        nodes = self.nodes
        if nodes.fallback_url is None:
            return None
        return Fallback(url=nodes.fallback_url, model=nodes.fallback_model, ca=nodes.fallback_ca)

    @property
    def renewal(self) -> Renewal:
        """What nodes are told of their certificates."""
        return Renewal(at_share=self.nodes.renew_at_share, grace_s=self.grace_s)

    @property
    def grace_s(self) -> int:
        """After the end of a certificate."""
        return int(self.nodes.grace_days * 86_400)


@dataclass(frozen=True, slots=True)
class FleetHome:
    """Where everything of one fleet lies."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """fleet.toml."""
        return self.root / "fleet.toml"

    @property
    def database(self) -> Path:
        """Nodes, tokens, certificates, audit log."""
        return self.root / "fleet.db"

    @property
    def telemetry(self) -> Path:
        """What nodes told: the sink's database."""
        return self.root / "telemetry.db"

    @property
    def ca(self) -> Path:
        """Certificates and keys of the authority."""
        return self.root / "ca"

    @property
    def tls(self) -> Path:
        """Certificates of the servers and of the fleet's own clients."""
        return self.root / "tls"

    @property
    def broker(self) -> Path:
        """mosquitto's files."""
        return self.root / "broker"

    @property
    def gateway(self) -> Path:
        """What a gateway needs to let nodes in, and only those."""
        return self.root / "gateway"

    @property
    def commands(self) -> Path:
        """The key that signs commands; `.pub` beside it."""
        return self.root / "commands" / "command.key"

    @property
    def admin_keys(self) -> Path:
        """Hashes of the keys that may administer."""
        return self.root / "admin-keys.json"

    @property
    def lock(self) -> Path:
        """Held by who writes the broker's and the gateway's files, or migrates the database."""
        return self.root / ".lock"

    @property
    def serving(self) -> Path:
        """Held by the one running server."""
        return self.root / ".serving"


def load_settings(home: FleetHome) -> FleetSettings:
    """Raises ConfigurationError with the line at fault."""
    path = home.settings_file
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{home.root} is no fleet's directory: there is no fleet.toml in it; `edge fleet init {home.root}` makes one, "
            "--dir or EDGE_FLEET_DIR names another"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    return parse_settings(text, f"{path}: ")


def parse_settings(text: str, where: str) -> FleetSettings:
    """Of the file's text; `where` begins each message. Raises ConfigurationError."""
    try:
        return FleetSettings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{where}{error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        name, said = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(
            f"{where}{f'{name}: ' if name else ''}{said}; docs/fleet.md lists what there is"
        ) from None
