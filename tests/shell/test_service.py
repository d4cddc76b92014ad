"""The service: what installing it takes, that a second time changes nothing, and how open its unit is, by systemd's own tools."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.cli import EXIT_CONFIGURATION, EXIT_USAGE
from edge.engine.child import longest_end_s
from edge.errors import ConfigurationError, DoesNotFit
from edge.listener import PortBusy
from edge.service.install import carry_out, examine
from edge.service.plan import Machine, MakeState, RemoveFile, Run, WriteFile, install_steps, require, uninstall_steps
from edge.service.unit import ENVIRONMENT, ENVIRONMENT_TEXT, STATE, UNIT, USERS, USERS_TEXT, unit_text
from edge.settings import Settings
from edge.sole import HomeBusy
from tests.conftest import RunEdge

EDGE = Path("/opt/edge/bin/edge")
MOST_EXPOSED = 2.0
FRESH = Machine(
    root=None,
    is_superuser=True,
    systemd_runs=True,
    executable=EDGE,
    executable_exists=True,
    code=Path("/opt/edge/lib/edge"),
    behind=(EDGE, Path("/usr")),
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


def test_an_environment_whose_python_the_service_could_not_read_is_refused() -> None:
    for behind in ("/root/.pyenv/versions/3.11.7", "/home/pia/edge/.venv/bin/edge"):
        with pytest.raises(ConfigurationError, match=f"would not see {behind}: .*with a Python of the system"):
            install_steps(dataclasses.replace(FRESH, behind=(EDGE, Path(behind))), start=True)


def test_the_python_that_an_environment_borrows_is_looked_at(tmp_path: Path) -> None:
    python = tmp_path / "lent" / "bin" / "python3"
    program = tmp_path / "opt" / "bin" / "edge"
    for path in (python, program):
        path.parent.mkdir(parents=True)
        path.touch(0o755)
    (program.parent / "python3").symlink_to(python)
    (program.parent.parent / "pyvenv.cfg").write_text(f"home = {tmp_path / 'other'}\nversion = 3.11.2\n")
    machine = examine(None, program)
    assert machine.executable_exists
    assert machine.behind == (program, python, tmp_path / "other")
    assert Path(sys.base_prefix).resolve() in examine(None).behind


def test_a_program_that_systemd_could_not_start_is_refused() -> None:
    relative = dataclasses.replace(FRESH, executable=Path("bin/edge"))
    for machine in (relative, dataclasses.replace(relative, root=Path("/mnt"))):
        with pytest.raises(ConfigurationError, match=r"bin/edge is not an absolute path.*--executable /opt"):
            install_steps(machine, start=True)
    spaced = dataclasses.replace(FRESH, executable=Path("/opt/edge 2/bin/edge"))
    with pytest.raises(ConfigurationError, match="has a space, or a sign that means something to systemd"):
        install_steps(spaced, start=True)
    missing = dataclasses.replace(FRESH, executable_exists=False)
    with pytest.raises(ConfigurationError, match="no program /opt/edge/bin/edge for the service"):
        install_steps(missing, start=True)
    assert install_steps(dataclasses.replace(missing, root=Path("/mnt")), start=True)
    assert not examine(None, Path("/opt/none/bin/edge")).executable_exists


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


def test_files_that_people_wrote_may_be_in_any_letters(system: Path) -> None:
    settings = system / ENVIRONMENT.relative_to("/")
    settings.parent.mkdir()
    settings.write_bytes("# Größe\n".encode("latin-1"))
    users = system / "etc" / "passwd"
    users.write_text(f"\n+::::::\n{users.read_text()}")
    installed(system, lambda _: None)
    assert settings.read_bytes() == "# Größe\n".encode("latin-1")
    assert install_steps(examine(system, EDGE), start=True) == []


def test_a_dry_run_says_each_step_and_changes_nothing(system: Path, run_edge: RunEdge) -> None:
    before = sorted(system.rglob("*"))
    done = run_edge("install", "--systemd", "--dry-run", "--root", str(system), "--executable", str(EDGE))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "would write /etc/sysusers.d/edge.conf",
        "would write /etc/systemd/system/edge.service",
    ]
    assert sorted(system.rglob("*")) == before


RACE = """
import os, sys
from pathlib import Path
from edge.service.install import carry_out
from edge.service.plan import MakeState
system = Path(sys.argv[1])
inside = system / "var/lib/edge/inside"

def swap(event, arguments):
    # Root is about to give away the first file of a directory: the service puts a link in that directory's place.
    if event == "os.chown" and os.path.basename(arguments[0]) in ("a", "b") and not inside.is_symlink():
        inside.rename(system / "moved")
        inside.symlink_to(system / "outside")

sys.addaudithook(swap)
carry_out([MakeState(Path("/var/lib/edge"))], system, print)
assert inside.is_symlink()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_link_put_in_a_directorys_place_meanwhile_is_not_followed(system: Path) -> None:
    (system / "etc" / "passwd").write_text("edge:x:12345:12346::/var/lib/edge:/usr/sbin/nologin\n")
    for directory in (system / "var/lib/edge/inside", system / "outside"):
        directory.mkdir(parents=True)
        for name in ("a", "b"):
            (directory / name).touch()
    subprocess.run([sys.executable, "-c", RACE, str(system)], timeout=120, check=True)
    owners = {path.relative_to(system).as_posix(): path.stat().st_uid for path in system.glob("*/[ab]")}
    assert owners == {"moved/a": 12345, "moved/b": 12345, "outside/a": 0, "outside/b": 0}
    assert (system / "var/lib/edge").stat().st_uid == 12345


def test_settings_that_only_root_may_read_count_as_there(system: Path) -> None:
    settings = system / "etc" / "edge" / "edge.env"
    settings.parent.mkdir()
    settings.write_text("EDGE_SERVER__PORT=9000\n")
    settings.chmod(0)
    for path in (system, *system.parents):
        if path.stat().st_uid == os.geteuid():
            path.chmod(path.stat().st_mode | 0o011)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        found = examine(system, EDGE).found
    finally:
        os.seteuid(user)
    assert found == {ENVIRONMENT: ""}


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
        timeout=120,
        check=True,
    )
    found = re.search(r"exposure level for edge\.service: ([\d.]+)", done.stdout)
    assert found is not None and float(found[1]) <= MOST_EXPOSED, done.stdout


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unattended_box_never_stays_failed_for_want_of_memory_or_a_port(unit: Path) -> None:
    section, said = "", {}
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif not line.startswith("#") and "=" in line:
            name, _, value = line.partition("=")
            said[section, name] = value
    assert said["[Unit]", "StartLimitIntervalSec"] == "0", "no number of starts is too many"
    assert said["[Service]", "Restart"] == "always" and int(said["[Service]", "RestartSec"]) >= 5
    exits = {EXIT_USAGE, EXIT_CONFIGURATION}
    assert {int(code) for code in said["[Service]", "RestartPreventExitStatus"].split()} == exits
    for error in (PortBusy, DoesNotFit, HomeBusy):
        assert not issubclass(error, ConfigurationError), "it would end with 78, and not be tried again"
    defaults = Settings()
    least_s = defaults.server.drain_timeout_s + longest_end_s(defaults.cache.kept_mib << 20)
    assert int(said["[Service]", "TimeoutStopSec"]) > least_s + 30


def test_the_unit_lets_background_engines_step_back_behind_others(unit: Path) -> None:
    allowed = allowed_calls(unit)
    assert {"sched_setscheduler", "setpriority"} <= allowed
    assert not allowed & {"sched_setaffinity", "mbind", "chroot"}


def test_the_unit_lets_a_node_ask_whether_its_clock_is_set_and_not_set_it(unit: Path) -> None:
    """ProtectClock= denies the question too, by a filter of its own: then the node refuses all commands, for ever."""
    text = unit.read_text()
    assert "\nProtectClock=" not in text and "\nCapabilityBoundingSet=\n" in text
    allowed = allowed_calls(unit)
    assert {"adjtimex", "clock_adjtime"} <= allowed and not allowed & {"clock_settime", "settimeofday"}


def allowed_calls(unit: Path) -> set[str]:
    """System calls that the unit's filters leave."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", unit.read_text(), re.MULTILINE):
        calls = set().union(*(calls_of(name) for name in line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def calls_of(name: str) -> set[str]:
    """The system calls behind a name, as this systemd has them."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, timeout=120, check=True
    )
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    return set().union(*(calls_of(word) for word in words if word and not word.startswith("#")))
