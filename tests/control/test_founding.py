"""`edge fleet init`, the settings file, and commands as a person meets them."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from bench.fleet_side import Box, FleetSide
from edge.control.enforcement import access_list
from edge.control.enrollment import node_name
from edge.control.settings import FleetSettings
from tests.conftest import RunEdge
from tests.waiting import until

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "fleet.md"


def settings_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += settings_of(kind, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def test_every_setting_is_documented() -> None:
    text = DOCUMENT.read_text()
    assert [name for name in settings_of(FleetSettings) if f"| `{name}` |" not in text] == []


def test_a_new_fleet_says_what_comes_next_and_is_not_made_twice(run_edge: RunEdge, tmp_path: Path) -> None:
    made = run_edge("fleet", "init", str(tmp_path / "plant-7"), "--host", "fleet.example")
    assert made.returncode == 0, made.stderr
    assert (
        "made the fleet plant-7" in made.stdout
        and "edge fleet serve --dir" in made.stdout
        and "admin key: edge-" in made.stdout
    )
    again = run_edge("fleet", "init", str(tmp_path / "plant-7"))
    assert again.returncode == 78 and "holds a fleet already" in again.stderr
    (tmp_path / "plant-7" / "fleet.toml").unlink()
    again = run_edge("fleet", "init", str(tmp_path / "plant-7"))
    assert again.returncode == 78 and "restore fleet.toml" in again.stderr, "an authority is never written over"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name", "No Good!"),
        ("--host", "bad host"),
        ("--host", "ok", "--host", "a/b"),
        ("--host", "fleet.example:8443"),
    ],
)
def test_what_cannot_be_is_refused_by_name(run_edge: RunEdge, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run_edge("fleet", "init", str(tmp_path / "f"), *arguments)
    assert (
        done.returncode == 78 and "Traceback" not in done.stderr and ("name" in done.stderr or "hosts" in done.stderr)
    )
    good = run_edge("fleet", "init", str(tmp_path / "f"), "--name", "good")
    assert good.returncode == 0, "nothing of it was left: " + good.stderr


def test_wrong_settings_are_named(own_fleet: FleetSide) -> None:
    own_fleet.set("nodes.certificate_days = -1")
    done = own_fleet.cli("nodes")
    assert done.returncode == 78 and "nodes.certificate_days" in done.stderr
    own_fleet.home.settings_file.write_text("nonsense = 1\n")
    done = own_fleet.cli("serve")
    assert done.returncode == 78 and "nonsense" in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('broker.url = "mqtts://broker.example:8883/mqtt"', "mqtt.url must be mqtt://host[:port]"),
        ('nodes.fallback_url = "https://:8445/v1"', "has no host"),
    ],
)
def test_what_nodes_would_refuse_is_refused_at_the_fleet(own_fleet: FleetSide, setting: str, said: str) -> None:
    own_fleet.set(setting)
    done = own_fleet.cli("serve")
    assert done.returncode == 78 and said in done.stderr and "nodes refuse this" in done.stderr


def test_a_directory_that_is_none_is_said_with_the_cure(run_edge: RunEdge, tmp_path: Path) -> None:
    done = run_edge("fleet", "token", "create", "--dir", str(tmp_path))
    assert done.returncode == 78 and "edge fleet init" in done.stderr and "EDGE_FLEET_DIR" in done.stderr


def test_one_server_serves_a_fleet(own_fleet: FleetSide) -> None:
    own_fleet.start()
    done = own_fleet.cli("serve")
    assert done.returncode == 1 and "another process" in done.stderr
    assert own_fleet.stop() == 0


def test_a_busy_port_is_named_with_its_setting(own_fleet: FleetSide, tmp_path: Path) -> None:
    own_fleet.start()
    other = FleetSide(tmp_path / "other")
    other.set(f"est.port = {own_fleet.ports[0]}")
    done = other.cli("serve")
    assert done.returncode == 1 and "[est] port" in done.stderr


def test_the_page_is_not_given_to_the_network_in_the_clear(own_fleet: FleetSide) -> None:
    own_fleet.set('admin.host = "0.0.0.0"')
    done = own_fleet.cli("serve")
    assert done.returncode == 78 and "tls_cert" in done.stderr


def test_times_and_bounds_of_tokens_are_checked(own_fleet: FleetSide) -> None:
    for arguments, said in (
        (("--ttl", "soon"), "no time"), (("--ttl", "800d"), "366 days"), (("--uses", "0"), "uses"), (("--group", "a b"), "group"),
        (("--label", "x" * 100), "label"),
    ):  # fmt: skip
        done = own_fleet.cli("token", "create", *arguments)
        assert done.returncode != 0 and said in done.stderr, done.stderr
    assert own_fleet.cli("token", "list").stderr.startswith("there are no tokens")


def test_ctrl_c_ends_the_server_in_good_order(own_fleet: FleetSide) -> None:
    own_fleet.start()
    assert own_fleet.server is not None
    own_fleet.server.send_signal(signal.SIGINT)
    assert own_fleet.server.wait(60) == 0
    own_fleet.server = None


def test_server_certificates_are_renewed_and_follow_the_hosts(own_fleet: FleetSide, tmp_path: Path) -> None:
    before = (own_fleet.home.tls / "server.pem").read_bytes()
    own_fleet.start()
    own_fleet.stop()
    assert (own_fleet.home.tls / "server.pem").read_bytes() == before, "what is good stays"
    own_fleet.home.settings_file.write_text(
        own_fleet.home.settings_file.read_text().replace(
            '["localhost", "127.0.0.1"]', '["localhost", "127.0.0.1", "fleet.example"]'
        )
    )
    own_fleet.start()
    assert (own_fleet.home.tls / "server.pem").read_bytes() != before
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(own_fleet.home.broker / "server.pem"), "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "DNS:fleet.example" in shown.stdout


def test_a_back_up_is_restored_as_documented(own_fleet: FleetSide, tmp_path: Path) -> None:
    own_fleet.start()
    box, later = Box(tmp_path / "box", own_fleet, "kept"), Box(tmp_path / "later", own_fleet, "later")
    box.enroll(own_fleet.token())
    root = own_fleet.home.root
    with sqlite3.connect(own_fleet.home.database) as db, sqlite3.connect(tmp_path / "fleet.db") as copy:
        db.backup(copy)
    tar = [
        "tar",
        "-C",
        str(root),
        "-czf",
        str(tmp_path / "fleet.tgz"),
        "--exclude",
        "*.db*",
        "--exclude",
        "broker",
        ".",
    ]
    assert subprocess.run(tar, check=False).returncode in (0, 1)  # 1: a file changed meanwhile; the server goes on
    later.enroll(own_fleet.token())
    own_fleet.kill()
    shutil.rmtree(root)
    root.mkdir()
    subprocess.run(["tar", "-C", str(root), "-xzf", str(tmp_path / "fleet.tgz")], check=True)
    shutil.copy(tmp_path / "fleet.db", own_fleet.home.database)
    for name in ("broker", "gateway"):
        (root / name).mkdir(exist_ok=True)
    own_fleet.start()
    own_fleet.start_broker()
    assert box.renew().status_code == 200 and box.bootstrap().status_code == 200
    assert later.renew().headers["edge-reason"] == "node_unknown"
    time.sleep(1.1)  # certificates have whole seconds
    namesake = Box(tmp_path / "namesake", own_fleet, "later")
    namesake.enroll(own_fleet.token())
    assert namesake.name == later.name and namesake.bootstrap().status_code == 200
    assert later.renew().headers["edge-reason"] == "node_unknown", "a name is one box's"
    assert later.bootstrap().headers["edge-reason"] == "node_unknown"


def test_a_full_disk_is_said_and_is_no_end(own_fleet: FleetSide, tmp_path: Path) -> None:
    """The process may write files of 200 KB at most: what SQLite then meets is what a full disk does."""
    token = own_fleet.token(uses=1000)
    with own_fleet.log.open("ab") as log:
        limit = (
            "import resource, runpy, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.argv = ['edge', 'fleet', 'serve', '--dir', sys.argv[1]];"
            "runpy.run_module('edge', run_name='__main__')"
        )
        own_fleet.server = subprocess.Popen(
            [sys.executable, "-c", limit, str(own_fleet.home.root)], stdout=log, stderr=log
        )
    give_up_s = time.monotonic() + 240
    with own_fleet.people() as people:
        while time.monotonic() < give_up_s:
            try:
                people.get("/health")
                break
            except Exception:
                time.sleep(0.05)
        codes = [Box(tmp_path / f"b{n}", own_fleet, f"b{n}").enroll(token).status_code for n in range(60)]
        assert codes[0] == 200 and codes[-1] == 503 and set(codes) == {200, 503}
        assert people.get("/fleet/v1/nodes").status_code == 200, "what is known is still told"


def test_a_directory_that_was_there_is_closed_to_others_too(run_edge: RunEdge, tmp_path: Path) -> None:
    root = tmp_path / "f"
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    assert run_edge("fleet", "init", str(root)).returncode == 0
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / ".lock").stat().st_mode) == 0o600


def test_what_nodes_told_is_closed_to_others(own_fleet: FleetSide) -> None:
    root = own_fleet.home.root
    root.chmod(0o755)
    own_fleet.home.telemetry.touch(0o644)
    own_fleet.start_broker()
    own_fleet.start()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    until(lambda: own_fleet.home.telemetry.with_name("telemetry.db-wal").exists())
    for path in root.glob("telemetry.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_directory_is_closed_to_others(own_fleet: FleetSide) -> None:
    for path in (
        own_fleet.home.root,
        own_fleet.home.ca,
        own_fleet.home.tls,
        own_fleet.home.broker,
        own_fleet.home.commands.parent,
    ):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700, path


@pytest.mark.parametrize(
    ("wished", "name"),
    [("Robot 12", "robot-12"), ("", "node"), ("--", "node"), ("fleet-sink", "node-fleet-sink"), ("fleet", "node-fleet"),
     ("Ünïcode", "n-code"), ("x" * 90, "x" * 50), ("a/../b#+", "a-b")],
)  # fmt: skip
def test_names_are_such_as_topics_can_carry(wished: str, name: str) -> None:
    assert node_name(wished) == name


def test_the_access_list_names_who_may_and_nobody_else() -> None:
    text = access_list([("n1", "g1")])
    assert (
        "pattern" not in text and "user n1\ntopic write edge/v1/g1/n1/up/#\ntopic read edge/v1/g1/n1/down/#\n" in text
    )
    assert "topic write edge/v1/+/+/down/cmd/+" in text and "readwrite" not in text


def test_without_the_extra_it_is_said_what_to_install_and_the_rest_works(run_edge: RunEdge, tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy.py").write_text("raise ModuleNotFoundError('not here', name='sqlalchemy')\n")
    without = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    refused = run_edge("fleet", "nodes", **without)
    assert refused.returncode == 78 and "edge-node[fleet]" in refused.stderr
    assert run_edge("fleet", "sink", "--help", **without).returncode == 0
    assert run_edge("fleet", "--help", **without).returncode == 0
