"""The one declaration of every setting. How a value is found is `edge.effective`'s part.

The settings reference and the example file are generated from here (`edge.reference`).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

MIB = 1024 * 1024
ENV_PREFIX = "EDGE_"

LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
Seconds = Annotated[float, Gt(0), Le(86_400), Field(allow_inf_nan=False)]


def holds_credentials(url: str) -> bool:
    """Whether an address has a user or a password in it. Settings are shown and addresses logged, so secrets stand in files."""
    return "@" in url.partition("://")[2].partition("/")[0].partition("?")[0].partition("#")[0]


def _listed(value: Any) -> Any:
    """The environment and flags have text only: names with commas between them."""
    return tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value


NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/+\-]{0,127}"
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
"""What clients may call a model."""
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed)]
HostName = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9_]([A-Za-z0-9._\-]{0,252}[A-Za-z0-9_])?)$")]
"""What clients may call a host; `*` is any."""
HostNames = Annotated[tuple[HostName, ...], BeforeValidator(_listed)]

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on that stand for all of a machine's, and by which of them the machine itself gets there."""


class Section(BaseModel):
    """One table of the settings file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Server(Section):
    """The HTTP listener."""

    host: Annotated[str, MinLen(1)] = Field(
        "127.0.0.1",
        description="Address to listen on; others than loopback need API keys. One that the machine gets later is waited for.",
    )
    port: Annotated[int, Ge(0), Le(65_535)] = Field(8080, description="TCP port; 0 takes any free one.")
    allowed_hosts: HostNames = Field(
        (),
        description="Further names by which clients may call a node that asks for no API key: it answers to addresses, to "
        "localhost and to the machine's own names, since a web page could reach it by any other. `*`: by any name.",
    )
    tls_cert: Path | None = Field(None, description="PEM file with the server's certificate chain. Turns TLS on.")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the CAs of client certificates. Clients without one are refused (mTLS)."
    )
    max_body_bytes: Annotated[int, Ge(1024), Le(1024 * MIB)] = Field(
        4 * MIB, description="Longest request body in bytes; longer ones get 413."
    )
    header_timeout_s: Seconds = Field(
        10.0, description="Time a client has for its TLS handshake, and for its request's head."
    )
    body_timeout_s: Seconds = Field(30.0, description="Time a client has to send its request's body; then 408.")
    write_timeout_s: Seconds = Field(
        30.0, description="Time a client may leave what waits for it unread; then it is given up."
    )
    max_connections: Annotated[int, Ge(1), Le(1_000_000)] = Field(
        1024,
        description="Connections open at one time. For one more the one that has been idle longest is closed; where none "
        "is idle, only its questions about health are answered. Of TLS handshakes as many may be under way besides.",
    )
    drain_timeout_s: Seconds = Field(45.0, description="Time that running answers have to finish after SIGTERM.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("server.tls_cert and server.tls_key belong together: set both or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("server.tls_client_ca needs server.tls_cert and server.tls_key too")
        return self

    @property
    def everywhere(self) -> bool:
        """Whether it listens on all addresses of the machine."""
        return self.host in _EVERYWHERE

    def url(self, port: int) -> str:
        """Where people on this machine reach the node."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"{'https' if self.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class Auth(Section):
    """Who may use the node."""

    mode: Literal["auto", "always"] = Field(
        "auto",
        description="`auto`: API keys are asked for unless the node listens on loopback. `always`: also there.",
    )
    keys_file: Path = Field(Path("keys.json"), description="Where API keys are kept (hashed); relative to EDGE_HOME.")


class Model(Section):
    """What is served."""

    name: Annotated[str, MinLen(1)] = Field(
        "edge-builtin", description="Name of a known model, or path of a GGUF file."
    )
    alias: str = Field("", description="Name that clients use for it; empty: the model's own name.")
    aliases: Names = Field((), description="Further names that clients may use for it.")

    @property
    def served_name(self) -> str:
        """What clients call it."""
        is_path = "/" in self.name or self.name.endswith(".gguf")
        return self.alias or (Path(self.name).stem if is_path else self.name)


class FurtherModel(Section):
    """A model beside the node's own: loaded when somebody asks for it, unloaded for others when the memory is needed. NAME is
    what clients call it. In the file only."""

    source: str = Field("", description="Name of a known model, or path of a GGUF or ONNX file; empty: NAME.")
    aliases: Names = Field((), description="Further names that clients may use for it.")
    pinned: bool = Field(False, description="Once loaded it is never unloaded for another model.")
    preload: bool = Field(
        False, description="It is loaded at start, after the node's own, and not at the first request."
    )
    idle_s: Annotated[float, Ge(0), Le(31_536_000)] = Field(
        0.0, description="It is unloaded after so many seconds without a request; 0: never for that reason."
    )
    slots: Annotated[int, Ge(0), Le(128)] = Field(
        0,
        description="Answers generated at one time; 0: as engine.slots has it, else 4, or fewer where memory is short.",
    )
    context_tokens: Annotated[int, Ge(0), Le(1 << 24)] = Field(
        0, description="Longest prompt plus answer of one request; 0: as [engine] has it, else 4,096 or less."
    )

    @model_validator(mode="after")
    def _stays_or_goes(self) -> Self:
        if self.pinned and self.idle_s:
            raise ValueError("pinned and idle_s exclude each other: leave one of them out")
        return self


class Engine(Section):
    """How the model runs."""

    context_tokens: Annotated[int, Ge(0), Le(1 << 24)] = Field(
        0, description="Longest prompt plus answer of one request; 0: what the model was trained to."
    )
    context_cap_tokens: Annotated[int, Ge(64), Le(1 << 24)] = Field(
        8192,
        description="Bound on context_tokens when that is 0, since memory grows with it; it is less where memory is short.",
    )
    slots: Annotated[int, Ge(0), Le(128)] = Field(
        0, description="Answers generated at one time; 0: 8, or as many of them as memory allows."
    )
    threads: Annotated[int, Ge(0), Le(1024)] = Field(
        0, description="CPU threads; 0: measured when the model is loaded."
    )
    gpu_layers: Annotated[int, Ge(-1), Le(10_000)] = Field(
        -1,
        description="Layers on the GPU, the output layer counted as one; -1: as many as fit, if the build can use one.",
    )
    kv_layout: Literal["auto", "streams", "unified"] = Field(
        "auto", description="Attention memory: one area per slot (`streams`) or a shared one (`unified`)."
    )
    kv_type: Literal["auto", "f16", "q8_0", "q4_0"] = Field(
        "auto", description="Number format of the attention memory; `auto`: f16, and less where memory is short."
    )
    flash_attention: Literal["auto", "on", "off"] = Field(
        "auto", description="Flash attention; kv_type q8_0 and q4_0 need it."
    )
    pass_tokens: Annotated[int, Ge(16), Le(8192)] = Field(
        256,
        description="Most prompt tokens in one forward pass; how many it is each time follows from the [slo] targets.",
    )
    max_waiting: Annotated[int, Ge(0), Le(100_000)] = Field(
        64, description="Requests that may wait for a slot; the next get 429."
    )
    heartbeat_s: Seconds = Field(2.0, description="How often an idle engine proves itself by a forward pass.")
    wedge_timeout_s: Seconds = Field(10.0, description="Silence after which the engine counts as hung and is replaced.")
    load_timeout_s: Seconds = Field(600.0, description="Time without progress after which loading counts as hung.")
    restart_backoff_max_s: Seconds = Field(10.0, description="Longest pause between two starts of a failing engine.")

    @model_validator(mode="after")
    def _kv_type_has_its_kernels(self) -> Self:
        if self.kv_type in ("q8_0", "q4_0") and self.flash_attention == "off":
            raise ValueError(
                f"engine.kv_type {self.kv_type} needs flash attention: set engine.flash_attention to auto or on"
            )
        return self


class Onnx(Section):
    """How ONNX models run, and how texts are gathered into passes: those for GGUF models of the kind too."""

    provider: Literal["auto", "tensorrt", "cuda", "cpu"] = Field(
        "auto", description="What runs them; `auto`: the first of TensorRT, CUDA and CPU that is there."
    )
    threads: Annotated[int, Ge(0), Le(1024)] = Field(
        0, description="CPU threads of each model; 0: all cores, with GGUF models one where that does better."
    )
    slo_ms: Annotated[float, Gt(0), Le(600_000)] = Field(
        50.0,
        description="Request read to whole answer, in milliseconds: texts are gathered into passes within it. It is promised "
        "to nobody while a language model has something to keep.",
    )
    most_rows: Annotated[int, Ge(1), Le(32)] = Field(
        32, description="Texts in one pass; less where the target or the memory asks for it."
    )
    most_picture_mpx: Annotated[float, Gt(0), Le(1000)] = Field(
        16.0,
        description="Largest picture that is looked at, in millions of pixels; a detector's memory is planned for it.",
    )
    pass_limit_s: Seconds = Field(
        60.0,
        description="Longest pass with a client's tensors (`/v2`) or over a picture; then it is ended and refused.",
    )


class Slo(Section):
    """What is promised for every request that is admitted, at the 99th percentile."""

    ttft_ms: Annotated[float, Gt(0), Le(600_000)] = Field(
        50.0, description="Request read to first token written, in milliseconds."
    )
    itl_ms: Annotated[float, Gt(0), Le(600_000)] = Field(
        50.0, description="Gap between two tokens of one answer, in milliseconds."
    )


class Admission(Section):
    """What happens to a request that cannot be answered within the targets."""

    mode: Literal["auto", "fleet", "best-effort", "strict", "off"] = Field(
        "auto",
        description="`best-effort`: answered in the gaps, and marked so. `strict`: refused with 429. `fleet`: sent to the "
        "fleet where that is sooner. `off`: nothing is promised to anybody, and all are served alike. `auto`: `fleet` where "
        "one is set, else `best-effort`.",
    )
    offline: Literal["best-effort", "strict"] = Field(
        "best-effort", description="The mode that holds in mode `fleet` while the fleet cannot be asked."
    )
    max_wait_s: Seconds = Field(
        20.0, description="Longest predicted wait for the first token of a late answer; beyond it: the fleet, or 429."
    )
    load_wait_s: Seconds = Field(
        120.0, description="Longest wait of a request for its model to be loaded, and for room for it; then 503."
    )


class Memory(Section):
    """How much of the machine's memory models may take."""

    budget_mib: Annotated[int, Ge(0), Le(1 << 24)] = Field(
        0,
        description="Most memory that models take together, in MiB: of the GPU where one is used, else main memory; 0: what is "
        "free when the node starts.",
    )
    reserve_mib: Annotated[int, Ge(0), Le(1 << 20)] = Field(
        64, description="Main memory that is kept back for the node's own process and for others, in MiB."
    )


class Fleet(Section):
    """The central fleet: OpenAI-compatible servers that answer what this node cannot answer in time."""

    url: str = Field(
        "", description="Address of the fleet, as a client's `base_url`: ends in /v1. For more than one, use `file`."
    )
    model: str = Field("", description="What the fleet calls the model served here; empty: the same name.")
    api_key_file: Path | None = Field(
        None, description="File with this node's key for the fleet. Callers' keys never travel. Relative to EDGE_HOME."
    )
    file: Path | None = Field(
        None, description="TOML file with several upstreams, one `[[upstream]]` each. Relative to EDGE_HOME."
    )
    ca_file: Path | None = Field(
        None,
        description="PEM file of the CA of the certificate at `url`; not set: those of the system. Relative to EDGE_HOME.",
    )
    cert_file: Path | None = Field(
        None, description="PEM file with this node's certificate chain (mTLS), for `url`. Relative to EDGE_HOME."
    )
    key_file: Path | None = Field(None, description="PEM file with that certificate's key. Relative to EDGE_HOME.")
    first_token_s: Seconds = Field(10.0, description="Longest wait for the fleet's first token, all tries together.")
    whole_answer_s: Seconds = Field(60.0, description="The same for an answer that is not streamed.")
    mib_per_hour: Annotated[int, Ge(0), Le(1 << 20)] = Field(
        0, description="Most traffic with the fleet in an hour, both ways, in MiB; 0: no bound."
    )
    cost_per_hour: Annotated[float, Ge(0), Le(1e6)] = Field(
        0.0, description="Most that may be spent in an hour, in the unit of `cost_per_million_tokens`; 0: no bound."
    )
    retry_share: Annotated[float, Ge(0), Le(1)] = Field(
        0.2, description="Second tries, as a share of requests sent to the fleet."
    )

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if holds_credentials(self.url):
            raise ValueError("fleet.url must hold no user and no password: use fleet.api_key_file")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("fleet.cert_file and fleet.key_file belong together: set both or none")
        return self


class Cache(Section):
    """Beginnings of prompts that are computed once and used again."""

    host_mib: Annotated[int, Ge(0), Le(1 << 20)] = Field(
        256,
        description="Most memory for saved beginnings in MiB, less where memory is short; 0: only what lies in free slots is "
        "used again.",
    )
    kept_mib: Annotated[int, Ge(0), Le(1 << 20)] = Field(
        0,
        description="Disk space for beginnings that are kept over an ordered restart, in MiB, under EDGE_HOME; they hold "
        "what users sent. 0: only pinned ones are kept.",
    )
    pinned_file: Path | None = Field(
        None,
        description="File of beginnings that are computed before the first request and never given up, one JSON object "
        "a line: `messages` and perhaps `tools` as in a chat request, or `text`. Relative to EDGE_HOME.",
    )
    isolate_keys: bool = Field(
        False, description="Each API key uses its own beginnings only: no key can tell by the time what another asked."
    )


class Metrics(Section):
    """What is measured beside the requests, and how it is named on /metrics."""

    interval_s: Annotated[float, Ge(0), Le(3600)] = Field(
        5.0, description="How often the hardware is looked at: GPU, temperatures, disk, pressure; 0: never."
    )
    dcgm_names: Literal["auto", "on", "off"] = Field(
        "auto",
        description="GPU figures also under the names of NVIDIA's DCGM exporter, on /metrics only. `auto`: on Jetson "
        "boards, where that exporter cannot run.",
    )


class Otlp(Section):
    """Metrics and traces for an OpenTelemetry collector, over HTTP. Needs the extra `otlp`. What was said is never sent."""

    endpoint: str = Field(
        "", description="Address of the collector, without /v1/metrics: http://host:4318; empty: nothing is sent."
    )
    headers_file: Path | None = Field(
        None, description="File with headers for the collector, one `Name: value` a line. Relative to EDGE_HOME."
    )
    interval_s: Annotated[float, Ge(1), Le(3600)] = Field(60.0, description="How often metrics are sent.")
    traces: Literal["off", "on"] = Field("off", description="Whether a trace of requests is sent.")
    sample: Annotated[float, Ge(0), Le(1)] = Field(
        0.1, description="Share of requests that are traced; who sends `traceparent` decides for his own."
    )

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        if holds_credentials(self.endpoint):
            raise ValueError(
                "otlp.endpoint must hold no user and no password: write `Authorization: Basic ...` into otlp.headers_file"
            )
        if self.endpoint and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", self.endpoint):
            raise ValueError("otlp.endpoint must be http://host:port or https://host:port, perhaps with a path")
        return self


_NO_LETTERS = frozenset({"Cc", "Cs", "Cn"})
"""Unicode's control characters, surrogates and non-characters: MQTT 5, 1.5.4, lets a broker refuse them."""


class Mqtt(Section):
    """What the node tells the fleet over MQTT, and the commands that it takes. Off while `url` is empty. See
    docs/telemetry.md."""

    url: str = Field("", description="The broker: mqtt://host[:port], or mqtts:// for TLS. Empty: nothing is sent.")
    group: Annotated[str, MaxLen(200)] = Field(
        "default", description="The group that this node belongs to; part of every topic. At most 200 letters."
    )
    node: Annotated[str, MaxLen(200)] = Field(
        "",
        description="The node's name in topics, one for each node; empty: the machine's host name. At most 200 letters.",
    )
    prefix: Annotated[str, MinLen(1)] = Field(
        "edge/v1/{group}/{node}/", description="What every topic begins with; {group} and {node} are filled in."
    )
    protocol: Literal["5", "3.1.1"] = Field(
        "5", description="Version of MQTT. In 3.1.1 a broker does not say that its access list refused something."
    )
    ack: Literal["sink", "puback"] = Field(
        "sink",
        description="When a record is safe: `sink`: when a sink says so (down/ack). `puback`: when the broker has it, which may "
        "lose it when it crashes.",
    )
    username: str = Field("", description="Name to log in with; empty: `node` where there is a password, else none.")
    password_file: Path | None = Field(None, description="File with the password. Relative to EDGE_HOME.")
    ca_file: Path | None = Field(
        None,
        description="PEM file of the CA of the broker's certificate; not set: those of the system. Relative to EDGE_HOME.",
    )
    cert_file: Path | None = Field(
        None, description="PEM file with this node's certificate chain (mTLS). Relative to EDGE_HOME."
    )
    key_file: Path | None = Field(None, description="PEM file with that certificate's key. Relative to EDGE_HOME.")
    interval_s: Annotated[float, Ge(1), Le(86_400)] = Field(15.0, description="How often metrics are taken.")
    spill_s: Seconds = Field(
        30.0, description="How long metrics may wait in memory before they are written to disk; events never wait."
    )
    outbox_mib: Annotated[int, Ge(4), Le(1 << 16)] = Field(
        64, description="Most disk space for what was not acknowledged, in MiB, under EDGE_HOME/outbox."
    )
    outbox_days: Annotated[float, Gt(0), Le(3650)] = Field(
        30.0, description="What is older is dropped, and reported as a gap."
    )
    backlog_per_s: Annotated[float, Gt(0), Le(10_000)] = Field(
        50.0, description="Records a second that are sent after an outage, beside what happens meanwhile."
    )
    backoff_max_s: Seconds = Field(60.0, description="Longest pause between two tries to connect.")
    command_keys_file: Path | None = Field(
        None,
        description="PEM file with the public keys (Ed25519) of those who may send commands; not set: commands are refused. "
        "Relative to EDGE_HOME.",
    )
    trust_clock: bool = Field(
        False, description="The clock is right although the kernel says that no time source has set it."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for name in ("group", "node"):
            if set(getattr(self, name)) & set("/+#{}\0"):
                raise ValueError(f"mqtt.{name} must have none of / + # {{ }} in it: it is one level of a topic")
            if any(unicodedata.category(letter) in _NO_LETTERS for letter in getattr(self, name)):
                raise ValueError(
                    f"mqtt.{name} must have no control characters in it: brokers end the session over them"
                )
        if not self.group:
            raise ValueError("mqtt.group must not be empty")
        rest = self.prefix.replace("{group}", "g").replace("{node}", "n")
        if "{node}" not in self.prefix or not self.prefix.endswith("/") or set(rest) & set("+#{}$\0"):
            raise ValueError("mqtt.prefix must contain {node}, end with a slash, and have no + # $ in it")
        self._check_url()
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("mqtt.cert_file and mqtt.key_file belong together: set both or none")
        return self

    def _check_url(self) -> None:
        if not self.url:
            return
        if holds_credentials(self.url):
            raise ValueError("mqtt.url must hold no password: use mqtt.username and mqtt.password_file")
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("mqtt", "mqtts") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise ValueError("mqtt.url must be mqtt://host[:port] or mqtts://host[:port]") from None
        if not sound or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("mqtt.url must be mqtt://host[:port] or mqtts://host[:port]")
        if parts.scheme == "mqtt" and (self.ca_file is not None or self.cert_file is not None):
            raise ValueError("mqtt.ca_file and mqtt.cert_file are for mqtts://; mqtt.url says mqtt://")


class Log(Section):
    """What the node says about itself, on standard error."""

    level: LogLevel = Field("info", description="Least severe event that is logged.")
    format: Literal["text", "json"] = Field("text", description="One line of text or one JSON object per event.")


class Settings(Section):
    """All settings."""

    server: Server = Server()
    auth: Auth = Auth()
    model: Model = Model()
    memory: Memory = Memory()
    engine: Engine = Engine()
    onnx: Onnx = Onnx()
    slo: Slo = Slo()
    admission: Admission = Admission()
    fleet: Fleet = Fleet()
    cache: Cache = Cache()
    metrics: Metrics = Metrics()
    otlp: Otlp = Otlp()
    mqtt: Mqtt = Mqtt()
    log: Log = Log()
    models: dict[Name, FurtherModel] = {}
    """Tables `[models.NAME]`: in the file only."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One setting as declared. `allowed` is a phrase for people. `section` is `models.NAME` for what each further model has."""

    section: str
    name: str
    field: FieldInfo

    @property
    def key(self) -> str:
        """`section.name`, as errors and `--set` write it."""
        return f"{self.section}.{self.name}"

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return f"{ENV_PREFIX}{self.section}__{self.name}".upper()

    @property
    def allowed(self) -> str:
        """What values it takes, as a phrase: `a whole number from 0 to 65535`."""
        return _allowed(self.field)


def declared() -> Iterator[Declared]:
    """Every setting that there is once, in the order of declaration."""
    for section, kind in SECTIONS.items():
        for name, field in kind.model_fields.items():
            yield Declared(section, name, field)


def declared_of_a_model(name: str = "NAME") -> Iterator[Declared]:
    """Every setting of a further model."""
    for key, field in FurtherModel.model_fields.items():
        yield Declared(f"models.{name}", key, field)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""The tables that there are once each."""


def _allowed(field: FieldInfo) -> str:
    kind, bounds = field.annotation, field.metadata
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        noun = "a whole number" if kind is int else "a number"
        above = next((b.gt for b in bounds if isinstance(b, Gt)), None)
        low = next((b.ge for b in bounds if isinstance(b, Ge)), None)
        high = next((b.le for b in bounds if isinstance(b, Le)), None)
        return f"{noun} from {low} to {high}" if above is None else f"{noun} above {above}, at most {high}"
    if kind == tuple[HostName, ...]:
        return "a list of host names without ports, or `*`"
    if get_origin(kind) is tuple:
        return "a list of names: letters, digits and . _ : / + -, with a letter or digit first"
    if kind is Path or Path in get_args(kind):
        return "a path"
    return "text, not empty" if any(isinstance(b, MinLen) for b in bounds) else "text"


def toml_value(value: str | Path | int | float | tuple[str, ...]) -> str:
    """A setting's value as TOML writes it."""
    return json.dumps(str(value)) if isinstance(value, str | Path) else json.dumps(value)
