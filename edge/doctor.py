"""What stands between this machine and a running node: each check says ok, warn or fail, and what to do.

Checks that load native code do so in a process of their own, since a broken library can end the process that loads it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from edge.api.auth import KeyStore
from edge.durable import FULL
from edge.effective import Effective, load
from edge.enrolled import standing_of
from edge.errors import ConfigurationError, EdgeError
from edge.fitting import Fitter, wishes_of
from edge.fleet.member import Member
from edge.fleet.upstreams import Upstream, read_upstreams
from edge.identity.moment import believed_s, best_guess_s
from edge.identity.store import Store
from edge.listener import PortBusy, bind, is_here, is_loopback
from edge.loading import SettingsPlanner, specs
from edge.machine import usable_cores
from edge.memory.host import host_memory
from edge.messages import Load
from edge.onnx.messages import LoadTensors
from edge.registry.manifest import READING
from edge.registry.resolve import Found, Registry, ResolvedModel, ResolvedTensors
from edge.settings import Settings
from edge.sole import running
from edge.telemetry.clock import SystemClock

_GIB = 1 << 30
_LITTLE_DISK_BYTES = 200 << 20
_LITTLE_MEMORY_BYTES = 256 << 20
_PROBE_S = 60
_OLDEST_PLAUSIBLE = datetime(2026, 1, 1, tzinfo=UTC)
_PROBE = "from edge.engine.llama.library import Library; o = Library(); print(int(o.offloads)); print(o.system)"

_RUNTIME_PROBE = (
    "import importlib, sys\n"
    "for name in sys.argv[1:]:\n"
    "    found = importlib.import_module(name)\n"
    "    more = ', '.join(found.get_available_providers()) if name == 'onnxruntime' else ''\n"
    "    print(f'{name} {found.__version__}' + (f' with {more}' if more else ''), flush=True)"
)
_ONNX_CURE = "pip install 'edge-node[onnx]', or 'edge-node[onnx-gpu]' on a machine with CUDA"

_FEATURE = re.compile(r"(\w+) = 1")

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `cure` is empty when all is well, or when `text` is an error's, which ends with the cure."""

    level: Level
    subject: str
    text: str
    cure: str = ""


def examine(home: Path, env: Mapping[str, str], flags: Mapping[str, tuple[str, str]]) -> Iterator[Finding]:
    """All checks in the order in which a person would go through them; slow ones come as they are done. `flags` as `load` has
    them."""
    yield _python()
    yield from _native()
    yield _cores()
    yield _memory()
    yield _home(home)
    yield _clock()
    try:
        effective = standing_of(load(home, env, flags), env).effective
    except ConfigurationError as error:
        yield Finding("fail", "settings", error.message)
        return
    settings = effective.settings
    yield Finding("ok", "settings", _sources(effective))
    yield from _models(effective)
    yield _port(settings, home)
    yield _keys(effective)
    yield from _fleet(effective)
    yield from _identity(effective)


def _python() -> Finding:
    return Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")


def _native() -> Iterator[Finding]:
    try:
        bindings = version("llama-cpp-python")
    except PackageNotFoundError:
        yield Finding(
            "fail", "native library", "llama-cpp-python is not installed", "`make install`, or pip install edge-node"
        )
        yield from _compiler()
        return
    done = _probed(_PROBE)
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        cure = "build it anew for this machine: `make distclean install`"
        yield Finding("fail", "native library", f"llama-cpp-python {bindings} does not load: {words}", cure)
        yield from _compiler()
        return
    offloads, _, features = done.stdout.partition("\n")
    yield Finding(
        "ok", "native library", f"llama-cpp-python {bindings}, built for {' '.join(_FEATURE.findall(features))}"
    )
    yield _gpu(offloads == "1")


def _probed(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own. One that takes too long has failed."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"it takes over {_PROBE_S} s")


def _compiler() -> Iterator[Finding]:
    for names, language in ((("cc", "gcc", "clang"), "C"), (("c++", "g++", "clang++"), "C++")):
        found = next((path for path in map(shutil.which, names) if path), None)
        if found is None:
            yield Finding("fail", f"{language} compiler", "none found", "apt install build-essential")
        else:
            yield Finding("ok", f"{language} compiler", found)


def _gpu(offloads: bool) -> Finding:
    nvidia = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if offloads:
        return Finding(
            "ok", "gpu", "this build uses a GPU where there is one" + (f": {len(nvidia)} visible" if nvidia else "")
        )
    if nvidia:
        cure = "build it with CUDA: `make distclean`, then CMAKE_ARGS=-DGGML_CUDA=ON make install"
        return Finding(
            "warn", "gpu", f"{len(nvidia)} visible, but this build of the library runs on the CPU only", cure
        )
    return Finding("ok", "gpu", "none; the CPU does the work")


def _cores() -> Finding:
    cores = usable_cores()
    return Finding("ok", "cores", f"{cores} usable of {os.cpu_count()}")


def _memory() -> Finding:
    memory = host_memory()
    if memory is None:
        return Finding("warn", "memory", "the kernel does not say what is available", "mount /proc")
    limit = memory.limit_bytes
    text = f"{memory.available_bytes / _GIB:.1f} GiB available" + (
        f", limited to {limit / _GIB:.1f} GiB" if limit else ""
    )
    if memory.available_bytes < _LITTLE_MEMORY_BYTES:
        return Finding("warn", "memory", text, "free some, or raise the container's limit")
    return Finding("ok", "memory", text)


def _home(home: Path) -> Finding:
    subject = "EDGE_HOME"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".doctor-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)  # on a full disk it is there, and empty
    except OSError as error:
        cure = "make room on its disk" if error.errno in FULL else "give this user the directory"
        cure += ", or choose another with EDGE_HOME or --home"
        return Finding("fail", subject, f"{home} cannot be written to ({error.strerror})", cure)
    free = shutil.disk_usage(home).free
    text = f"{home}, {free / _GIB:.1f} GiB free"
    if free < _LITTLE_DISK_BYTES:
        return Finding("warn", subject, text, "make room: keys and caches are kept there")
    return Finding("ok", subject, text)


def _clock() -> Finding:
    now = datetime.now(UTC)
    text = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    if now < _OLDEST_PLAUSIBLE:
        return Finding(
            "warn", "clock", f"{text} lies in the past: TLS and logs will be wrong", "set it: timedatectl set-ntp true"
        )
    return Finding("ok", "clock", text)


def _sources(effective: Effective) -> str:
    changed = [key for key, origin in effective.origins.items() if origin.source != "default"]
    return f"valid, {', '.join(changed)} set" if changed else "valid, all at their defaults"


def _models(effective: Effective) -> Iterator[Finding]:
    """The node's own, without which it does not start, and the further ones in the room that it leaves."""
    settings, fitter = effective.settings, Fitter(effective.settings)
    models = specs(settings, settings.model.served_name)
    registry = Registry.at(effective.home)
    planner = SettingsPlanner(settings, effective.home, registry, fitter, models[1:])
    room: int | None = None
    loaded: set[str] = set()
    for spec in models:
        subject = "model" if spec.main else f"model {spec.name}"
        missing: Level = "fail" if spec.main else "warn"
        try:
            version = asyncio.run(planner.find(spec))
            yield Finding("ok", subject, f"{version.model.name}: {_described(version.model)}")
            yield from _runtime(version.model, loaded)
            if spec.main and isinstance(version.model, ResolvedModel):
                room = fitter.fit(version.model.header, wishes_of(settings)).budget.bytes
            if room is None:
                continue  # without the node's own model nobody knows what it leaves
            fitted = asyncio.run(planner.fit(version, room))
        except EdgeError as error:
            yield Finding(missing, subject, error.message)
            continue
        if spec.fixed:
            room -= fitted.bytes
        yield Finding("ok", subject, f"fits, with {fitted.bytes / 2**20:,.0f} MiB{_layout(fitted.load)}")


def _runtime(model: Found, loaded: set[str]) -> Iterator[Finding]:
    """Whether what an ONNX model is run by can be loaded; `loaded` keeps what was said already."""
    needs = [name for name in _packages(model) if name not in loaded]
    if not needs:
        return
    loaded.update(needs)
    done = _probed(_RUNTIME_PROBE, *needs)
    said = done.stdout.splitlines()
    if done.returncode == 0:
        yield Finding("ok", "ONNX runtime", "; ".join(said))
        return
    words = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
    yield Finding(
        "warn", "ONNX runtime", f"{needs[len(said)]}, which {model.name} needs, does not load: {words}", _ONNX_CURE
    )


def _packages(model: Found) -> tuple[str, ...]:
    if isinstance(model, ResolvedModel) or model.header is not None:
        return ()
    reads = ("tokenizers",) if model.task in READING else ()
    return ("onnxruntime", *reads, *(("PIL",) if model.task == "detection" else ()))


def _described(model: Found) -> str:
    if isinstance(model, ResolvedTensors):
        return f"{model.file_bytes / 1e6:,.1f} MB at {model.path}"
    header = model.header
    return (
        f"{header.architecture}, {header.parameters / 1e6:,.1f} M parameters, {header.quantization}, "
        f"{header.file_bytes / 1e6:,.1f} MB at {model.path}"
    )


def _layout(load: Load | LoadTensors) -> str:
    return f", {load.slots} answers at a time of {load.context_tokens:,} tokens" if isinstance(load, Load) else ""


def _port(settings: Settings, home: Path) -> Finding:
    try:
        listener = bind(settings.server)
    except EdgeError as error:
        if isinstance(error, PortBusy) and (node := running(home)) is not None:
            at = f"port {settings.server.port} on {settings.server.host} is in use"
            return Finding("ok", "port", f"{at}, and a node runs on this EDGE_HOME{node}: `edge status` asks it")
        return Finding("warn", "port", error.message)
    with listener:
        address: tuple[str, int] = listener.getsockname()[:2]
        if not is_here(listener):
            text = f"{address[0]} is no address of this machine now: a node starts, and nobody reaches it until it is"
            return Finding("warn", "port", text, "correct server.host, or see what gives this machine its address")
    return Finding("ok", "port", f"{address[0]} port {address[1]} is free")


def _keys(effective: Effective) -> Finding:
    settings = effective.settings
    try:
        count = len(KeyStore(effective.keys_file).all())
    except ConfigurationError as error:
        return Finding("fail", "API keys", error.message)
    if settings.auth.mode == "auto" and is_loopback(settings.server.host):
        return Finding("ok", "API keys", f"{count}; none is asked for, since only this machine can reach the node")
    if count == 0:
        return Finding("fail", "API keys", "none, and this address asks for one", "edge keys create NAME")
    return Finding("ok", "API keys", str(count))


def _fleet(effective: Effective) -> Iterator[Finding]:
    try:
        upstreams = read_upstreams(effective.settings.fleet, effective.home)
    except ConfigurationError as error:
        yield Finding("fail", "fleet", error.message)
        return
    for upstream in upstreams:
        yield asyncio.run(_upstream(upstream))


def _identity(effective: Effective) -> Iterator[Finding]:
    """Who the node is to its fleet: the key's mode, the certificate's end, and whether the clock may judge that."""
    store, clock = Store(effective.home), SystemClock(trusted=effective.settings.mqtt.trust_clock)
    try:
        identity = store.current()
    except ConfigurationError as error:
        yield Finding("fail", "identity", error.message)
        return
    if identity is None:
        return
    now, known, life = clock.now(), store.known(), identity.life
    if believed_s(now, known) is None:
        cure = "let it be set (timedatectl set-ntp true); if it is right: mqtt.trust_clock"
        yield Finding("warn", "clock", "not set by any source: certificates are checked without their dates", cure)
    left_s, standing = life.ends_s - best_guess_s(now, known), life.standing(best_guess_s(now, known))
    text = f"{identity.node} at {identity.fleet_url}, the key is for this user alone; certificate "
    text += f"ends in {left_s / 86_400:,.1f} days" if left_s > 0 else f"ended {-left_s / 86_400:,.1f} days ago"
    level: Level = {"expired": "fail", "expiring": "warn"}.get(standing, "ok")  # type: ignore[assignment]
    yield Finding(level, "identity", text, "" if level == "ok" else "edge identity renew, and see what that says")


async def _upstream(upstream: Upstream) -> Finding:
    """Whether it answers as such a server does, and knows the model that it would be asked for."""
    try:
        member = Member(upstream)
    except ConfigurationError as error:
        return Finding("fail", "fleet", error.message)
    try:
        wrong = await member.probe()
    finally:
        await member.lanes.close()
    where = f"{upstream.name} at {upstream.url}"
    if wrong:
        return Finding(
            "warn", "fleet", f"{where}: {wrong}", "see that it runs, and that its address, key and CA are right"
        )
    if upstream.model and upstream.model not in member.models:
        cure = f"set the model to one of these: {', '.join(member.models[:5])}"
        return Finding("warn", "fleet", f"{where} answers, and has no model {upstream.model!r}", cure)
    return Finding("ok", "fleet", f"{where} answers; it has {', '.join(member.models[:5]) or 'no models'}")
