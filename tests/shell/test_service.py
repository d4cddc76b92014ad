"""The service: what installing it takes, that a second time changes nothing, and how open its unit is, by systemd's own tools."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import ConfigurationError
from edge.service.install import carry_out, examine
from edge.service.plan import Machine, MakeState, RemoveFile, Run, WriteFile, install_steps, require, uninstall_steps
from edge.service.unit import ENVIRONMENT, ENVIRONMENT_TEXT, STATE, UNIT, USERS, USERS_TEXT, unit_text
from tests.conftest import RunEdge

EDGE = Path("/opt/edge/bin/edge")
MOST_EXPOSED = 2.0
FRESH = Machine(
    root=None,
    is_superuser=True,
    systemd_runs=True,
    executable=EDGE,
    code=Path("/opt/edge/lib/edge"),
    found={},
    state_exists=False,
    active=False,
)
INSTALLED = dataclasses.replace(
    FRESH,
    found={UNIT: unit_text(EDGE), USERS: USERS_TEXT, ENVIRONMENT: "mine"},
    state_exists=True,
    active=True,
)


def test_a_fresh_machine_gets_user_state_unit_and_a_start_in_that_order() -> None:
    assert install_steps(FRESH, start=True) == [
        WriteFile(USERS, USERS_TEXT, 0o644),
        WriteFile(UNIT, unit_text(EDGE), 0o644),
        WriteFile(ENVIRONMENT, ENVIRONMENT_TEXT, 0o640),
        Run(("systemd-sysusers", "edge.conf")),
        MakeState(STATE),
        Run(("systemctl", "daemon-reload")),
        Run(("systemctl", "enable", "edge.service")),
        Run(("systemctl", "restart", "edge.service")),
    ]


def test_a_second_installation_does_nothing() -> None:
    assert install_steps(INSTALLED, start=True) == []


def test_what_does_not_run_is_started_and_nothing_else() -> None:
    stopped = dataclasses.replace(INSTALLED, active=False)
    assert install_steps(stopped, start=True) == [Run(("systemctl", "restart", "edge.service"))]
    assert install_steps(stopped, start=False) == []


def test_an_older_unit_is_written_anew_and_the_settings_stay() -> None:
    older = dataclasses.replace(INSTALLED, found={**INSTALLED.found, UNIT: "[Unit]\n"})
    steps = install_steps(older, start=True)
    assert WriteFile(UNIT, unit_text(EDGE), 0o644) in steps
    assert not any(isinstance(step, WriteFile) and step.path == ENVIRONMENT for step in steps)
    assert steps[-1] == Run(("systemctl", "restart", "edge.service"))


def test_what_the_service_could_not_read_is_refused_with_a_place_that_it_can() -> None:
    for hidden in ("/root/venv/bin/edge", "/home/pia/edge/.venv/bin/edge", "/tmp/x/bin/edge"):
        with pytest.raises(ConfigurationError, match=r"would not see .*: install edge where .*/opt/edge"):
            install_steps(dataclasses.replace(FRESH, executable=Path(hidden)), start=True)
    with pytest.raises(ConfigurationError, match="would not see /root/checkout/edge"):
        install_steps(dataclasses.replace(FRESH, code=Path("/root/checkout/edge")), start=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"is_superuser": False}, "only root can install"), ({"systemd_runs": False}, "systemd does not run here")],
)
def test_where_no_service_can_be_installed_it_says_why(change: dict[str, bool], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        require(dataclasses.replace(FRESH, **change))


def test_uninstalling_leaves_state_and_settings() -> None:
    assert uninstall_steps(INSTALLED) == [
        Run(("systemctl", "disable", "--now", "edge.service")),
        RemoveFile(UNIT),
        RemoveFile(USERS),
        Run(("systemctl", "daemon-reload")),
    ]
    assert uninstall_steps(FRESH) == []


# --- another system's root, with systemd's own programs ---------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The root of a system that is being put together. Its user `edge` is the one who runs the test: this needs no root."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(f"edge:x:{os.getuid()}:{os.getgid()}::/var/lib/edge:/usr/sbin/nologin\n")
    groups = ("edge", os.getgid()), ("video", 44), ("render", 105)
    (tmp_path / "etc" / "group").write_text("".join(f"{name}:x:{number}:edge\n" for name, number in groups))
    return tmp_path


def installed(system: Path, say: Callable[[str], None]) -> None:
    carry_out(install_steps(examine(system, EDGE), start=True), system, say)


def test_another_systems_root_is_prepared_and_a_second_time_nothing_is_done(system: Path) -> None:
    kept = system / "var" / "lib" / "edge" / "keys.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    said: list[str] = []
    installed(system, said.append)
    assert (system / "etc/systemd/system/edge.service").read_text() == unit_text(EDGE)
    wanted = system / "etc/systemd/system/multi-user.target.wants/edge.service"
    assert os.readlink(wanted).endswith("/etc/systemd/system/edge.service")
    assert (system / "etc/edge/edge.env").stat().st_mode & 0o777 == 0o640
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert kept.read_text() == "{}"
    assert said[0] == "write /etc/sysusers.d/edge.conf"

    (system / "etc/edge/edge.env").write_text("EDGE_SERVER__PORT=9000\n")
    again: list[str] = []
    installed(system, again.append)
    assert again == []
    assert (system / "etc/edge/edge.env").read_text() == "EDGE_SERVER__PORT=9000\n"

    carry_out(uninstall_steps(examine(system, EDGE)), system, said.append)
    assert not wanted.is_symlink() and not (system / "etc/systemd/system/edge.service").exists()
    assert kept.read_text() == "{}"


def test_a_dry_run_says_each_step_and_changes_nothing(system: Path, run_edge: RunEdge) -> None:
    before = sorted(system.rglob("*"))
    done = run_edge("install", "--systemd", "--dry-run", "--root", str(system), "--executable", str(EDGE))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "would write /etc/sysusers.d/edge.conf",
        "would write /etc/systemd/system/edge.service",
    ]
    assert sorted(system.rglob("*")) == before


# --- the unit, by systemd's own judgement -----------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    path = tmp_path / "edge.service"
    path.write_text(unit_text(Path("/bin/true")))
    return path


def test_the_unit_is_exposed_to_little(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"exposure level for edge\.service: ([\d.]+)", done.stdout)
    assert found is not None and float(found[1]) <= MOST_EXPOSED, done.stdout


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_lets_background_engines_step_back_behind_others(unit: Path) -> None:
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", unit.read_text(), re.MULTILINE):
        calls = set().union(*(calls_of(name) for name in line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    assert {"sched_setscheduler", "setpriority"} <= allowed
    assert not allowed & {"sched_setaffinity", "mbind", "chroot"}


def calls_of(name: str) -> set[str]:
    """The system calls behind a name, as this systemd has them."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, timeout=60, check=True
    )
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    return set().union(*(calls_of(word) for word in words if word and not word.startswith("#")))
