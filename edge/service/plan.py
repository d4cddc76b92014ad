"""What installing the service takes on this machine. Decides only: what is there comes in, steps go out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConfigurationError
from edge.service.unit import ENVIRONMENT, ENVIRONMENT_TEXT, STATE, UNIT, USER, USERS, USERS_TEXT, unit_text

_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))
"""The service sees these empty: ProtectHome=, PrivateTmp=."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is there. `found`: the text of each file that is there, by its path; empty if it may not be read."""

    root: Path | None
    """Another system's root directory, such as an image that is being made; None: this machine."""
    is_superuser: bool
    systemd_runs: bool
    executable: Path
    executable_exists: bool
    code: Path
    """Where the package lies: beside the executable, or in a checkout."""
    behind: tuple[Path, ...]
    """Where the executable's links lead, and the Python that an environment borrows: the service needs these too."""
    found: dict[Path, str]
    state_exists: bool
    active: bool
    """The service runs."""


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A file gets this text."""

    path: Path
    text: str
    mode: int

    def __str__(self) -> str:
        return f"write {self.path}"


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """A file goes."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True)
class MakeState:
    """EDGE_HOME is made and given to the service's user, with what lies in it."""

    path: Path

    def __str__(self) -> str:
        return f"make {self.path}, for the user {USER} alone"


@dataclass(frozen=True, slots=True)
class Run:
    """A program of systemd's does its part."""

    command: tuple[str, ...]

    def __str__(self) -> str:
        return "run " + " ".join(self.command)


Step = WriteFile | RemoveFile | MakeState | Run


def install_steps(machine: Machine, *, start: bool) -> list[Step]:
    """What is still to be done; empty if all is as it should be. Raises ConfigurationError where it cannot be."""
    _require_runnable(machine)
    wanted = [
        WriteFile(USERS, USERS_TEXT, 0o644),
        WriteFile(UNIT, unit_text(machine.executable), 0o644),
    ]
    steps: list[Step] = [step for step in wanted if machine.found.get(step.path) != step.text]
    changed = bool(steps)
    if ENVIRONMENT not in machine.found:
        steps.append(WriteFile(ENVIRONMENT, ENVIRONMENT_TEXT, 0o640))
    if changed or not machine.state_exists:
        steps += [Run(("systemd-sysusers", *_of(machine), USERS.name)), MakeState(STATE)]
    if machine.root is not None:
        return [*steps, Run(("systemctl", *_of(machine), "enable", UNIT.name))] if changed else steps
    if changed:
        steps += [Run(("systemctl", "daemon-reload")), Run(("systemctl", "enable", UNIT.name))]
    if start and (changed or not machine.active):
        steps.append(Run(("systemctl", "restart", UNIT.name)))
    return steps


def uninstall_steps(machine: Machine) -> list[Step]:
    """Takes the service away; EDGE_HOME, the user and the settings stay."""
    files: list[Step] = [RemoveFile(path) for path in (UNIT, USERS) if path in machine.found]
    if not files:
        return []
    if machine.root is not None:
        return [Run(("systemctl", *_of(machine), "disable", UNIT.name)), *files]
    return [Run(("systemctl", "disable", "--now", UNIT.name)), *files, Run(("systemctl", "daemon-reload"))]


def require(machine: Machine) -> None:
    """Raises ConfigurationError where no step could be carried out."""
    if not machine.is_superuser:
        raise ConfigurationError(
            "only root can install a service: run it with sudo; --dry-run shows what would be done"
        )
    if machine.root is None and not machine.systemd_runs:
        raise ConfigurationError(
            "systemd does not run here, so there is nothing to install a service into; start the node with `edge serve`, or "
            "give --root DIR for a system that is being put together"
        )


def _require_runnable(machine: Machine) -> None:
    """Raises ConfigurationError where systemd could not start what the unit names."""
    if not machine.executable.is_absolute():
        raise ConfigurationError(
            f"{machine.executable} is not an absolute path, which systemd wants: give --executable /opt/edge/bin/edge, or alike"
        )
    if not re.fullmatch(r"[\w./+@:~-]+", str(machine.executable)):
        raise ConfigurationError(
            f"{str(machine.executable)!r} has a space, or a sign that means something to systemd, in it: install edge elsewhere, "
            "such as in /opt/edge"
        )
    if machine.root is not None:
        return
    for path in (machine.executable, machine.code, *machine.behind):
        if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ConfigurationError(
                f"the service would not see {path}: install edge where every user can read it, with a Python of the system's, "
                "such as `/usr/bin/python3 -m venv /opt/edge`, then `/opt/edge/bin/pip install .` in the checkout "
                "(docs/install/systemd.md), and run `/opt/edge/bin/edge install --systemd`"
            )
    if not machine.executable_exists:
        raise ConfigurationError(
            f"there is no program {machine.executable} for the service to run: give --executable with the path of `edge`"
        )


def _of(machine: Machine) -> tuple[str, ...]:
    return (f"--root={machine.root}",) if machine.root is not None else ()
