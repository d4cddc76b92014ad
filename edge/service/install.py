"""Looks at the machine for `edge.service.plan`, and carries its steps out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import edge
from edge.durable import write_atomically
from edge.errors import ConfigurationError, EdgeError
from edge.service.plan import Machine, MakeState, RemoveFile, Run, Step, WriteFile
from edge.service.unit import ENVIRONMENT, STATE, UNIT, USER, USERS

_SYSTEMD_RUNS = Path("/run/systemd/system")
"""sd_booted(3)."""


class StepFailed(EdgeError):
    """A step of the installation did not succeed; the ones before it stand, and a second try goes on from there."""


def examine(root: Path | None, executable: Path | None = None) -> Machine:
    """What is there. `executable`: the `edge` as the system at `root` will see it; None: this one."""
    found = {}
    for path in (UNIT, USERS, ENVIRONMENT):
        try:
            found[path] = placed(root, path).read_text("utf-8", "replace")  # settings are written by people
        except FileNotFoundError:
            continue
        except PermissionError:  # a dry run without root: it is there, and what it says is not for this user
            found[path] = ""
        except OSError as error:
            raise ConfigurationError(f"{placed(root, path)} cannot be read: {error.strerror or error}") from None
    runs = _SYSTEMD_RUNS.is_dir()
    program = executable or Path(sys.prefix) / "bin" / "edge"
    return Machine(
        root=root,
        is_superuser=os.geteuid() == 0,
        systemd_runs=runs,
        executable=program,
        executable_exists=os.path.isfile(program) and os.access(program, os.X_OK),
        code=Path(edge.__file__).resolve().parent,
        behind=_behind(program),
        found=found,
        state_exists=placed(root, STATE).is_dir(),
        active=runs and root is None and _is_active(),
    )


def _behind(program: Path) -> tuple[Path, ...]:
    """The program and its environment's Python without links, and the installation that the environment is made from."""
    found = [program.resolve()]
    python = program.parent / "python3"
    if os.path.exists(python):
        found.append(python.resolve())
    if program.parent == Path(sys.prefix) / "bin":
        found.append(Path(sys.base_prefix).resolve())
    with contextlib.suppress(OSError):
        for line in (program.parent.parent / "pyvenv.cfg").read_text("utf-8").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home":
                found.append(Path(value.strip()).resolve())
    return tuple(dict.fromkeys(found))


def carry_out(steps: Iterable[Step], root: Path | None, say: Callable[[str], None]) -> None:
    """Do them in order. Raises StepFailed at the first that fails."""
    for step in steps:
        say(str(step))
        try:
            match step:
                case WriteFile():
                    _write(placed(root, step.path), step.text, step.mode)
                case RemoveFile():
                    placed(root, step.path).unlink(missing_ok=True)
                case MakeState():
                    _make_state(placed(root, step.path), _user(root))
                case Run():
                    _run(step.command)
        except OSError as error:
            raise StepFailed(
                f"this step failed: {step}: {error.strerror or error}; put it right, then run the same command again"
            ) from None


def placed(root: Path | None, path: Path) -> Path:
    """Where a path of the system at `root` lies."""
    return path if root is None else root / path.relative_to("/")


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode(), mode)


def _make_state(path: Path, owner: tuple[int, int]) -> None:
    """What root put there before is the service's too.

    The service may be running, and may put a link in the place of a directory at any moment: root goes from directory to
    directory by descriptor, and follows no link below the first.
    """
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    _own(str(path), owner, None)
    for _, names, files, directory in os.fwalk(path.resolve(), follow_symlinks=False):
        for name in (*names, *files):
            with contextlib.suppress(FileNotFoundError):  # the service has removed it meanwhile
                _own(name, owner, directory)


def _own(name: str, owner: tuple[int, int], directory: int | None) -> None:
    """Give it to the owner, if it is not theirs. Only a path outside any directory handed in may be a link."""
    follow = directory is None
    found = os.stat(name, dir_fd=directory, follow_symlinks=follow)
    if (found.st_uid, found.st_gid) != owner:
        os.chown(name, *owner, dir_fd=directory, follow_symlinks=follow)


def _user(root: Path | None) -> tuple[int, int]:
    """The service's user and group, from the password file of the system at `root`."""
    for line in placed(root, Path("/etc/passwd")).read_text("utf-8").splitlines():
        name, _, uid, gid = (*line.split(":"), "", "", "")[:4]
        if name == USER:
            return int(uid), int(gid)
    raise StepFailed(
        f"there is no user {USER} after systemd-sysusers: make one (`useradd --system {USER}`), then try again"
    )


def _run(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = " ".join(done.stderr.split()) or f"it ended with {done.returncode}"
        raise StepFailed(f"`{' '.join(command)}` failed: {words}; `journalctl -u edge` may say more")


def _is_active() -> bool:
    try:
        done = subprocess.run(["systemctl", "is-active", "--quiet", UNIT.name], check=False)
    except OSError:
        return False
    return done.returncode == 0
