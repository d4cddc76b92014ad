"""`edge enroll` and `edge identity` as people and units call them: exit codes, words, and where a token may come from."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.broker import Broker
from bench.est_server import EstServer
from edge.cli.patience import LONGEST_S, Obstacle, keep_trying, pause_s
from tests.conftest import RunEdge
from tests.waiting import until


@pytest.fixture
def broker(est: EstServer, tmp_path: Path):
    """mosquitto, with certificates of the same CA."""

    def certify(place: Path) -> None:
        est.authority.trusted_pem(place / "ca.pem")
        est.authority.server_pem(place / "broker.pem", "localhost", "127.0.0.1")

    place = tmp_path / "broker"
    place.mkdir()
    found = Broker(place, certify=certify)
    found.start()
    est.more = {"mqtt": {"url": f"mqtts://localhost:{found.port}"}, "group": "press"}
    yield found
    found.kill()


def test_one_command_from_a_bare_box_to_a_node_that_its_broker_lets_in(
    est: EstServer, broker: Broker, run_edge: RunEdge, home: Path
) -> None:
    done = run_edge("enroll", "--fleet", est.url, "--token", est.token(), "--name", "Press 7")
    assert done.returncode == 0, done.stderr
    assert "tok1-1 of trial" in done.stdout and "lets this node in" in done.stdout
    settings = run_edge("settings", "--changed").stdout
    assert f'url = "mqtts://localhost:{broker.port}"' in settings and "# enrollment" in settings
    again = run_edge("enroll", "--fleet", est.url, "--token", est.token("tok2"))
    assert (again.returncode, "already" in again.stdout) == (0, True)
    assert run_edge("enroll").returncode == 0, "who is enrolled needs no token"


def test_a_broker_that_is_not_there_is_said_and_no_failure(est: EstServer, broker: Broker, run_edge: RunEdge) -> None:
    broker.kill()
    done = run_edge("enroll", "--fleet", est.url, "--token", est.token())
    assert done.returncode == 0 and "not reached" in done.stdout


def test_exit_codes(est: EstServer, run_edge: RunEdge, tmp_path: Path) -> None:
    token = est.token()
    other = EstServer(tmp_path / "other")
    try:
        assert run_edge("enroll", "--fleet", other.url, "--token", token).returncode == 2
    finally:
        other.stop()
    assert run_edge("enroll", "--fleet", other.url, "--token", token).returncode == 5
    assert run_edge("enroll", "--fleet", est.url, "--token", est.token("gone", revoked=True)).returncode == 3
    est.manner.approval = True
    pending = run_edge("enroll", "--fleet", est.url, "--token", token)
    assert (pending.returncode, "approve" in pending.stderr) == (4, True)
    est.approved.add("tok1-1")
    assert run_edge("enroll", "--fleet", est.url, "--token", token).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--nonsense"], "No such option"),
        ([], "give a token"),
        (["--fleet", "https://fleet", "--token", "E10"], "no enrollment token"),
        (["--token", "{token}"], "give the fleet's address"),
        (["--fleet", "http://fleet", "--token", "{token}"], "must begin with https://"),
        (["--fleet", "https://fleet/path", "--token", "{token}"], "nothing more"),
        (["--fleet", "https://192.168.1.256", "--token", "{token}"], "Invalid IPv4 address"),
        (["--fleet", "https://fleet", "--token", "{token}", "--token-file", "x"], "give the token once"),
        (["--fleet", "https://fleet", "--token-file", "/nowhere"], "cannot be read"),
    ],
)
def test_called_wrongly_it_ends_with_64(est: EstServer, run_edge: RunEdge, arguments: list[str], part: str) -> None:
    done = run_edge("enroll", *(word.format(token=est.token()) for word in arguments))
    assert (done.returncode, part in done.stderr) == (64, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "s" * 24 not in done.stderr


def test_a_token_from_a_file_the_environment_or_a_pipe(est: EstServer, run_edge: RunEdge, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(est.token("file1") + "\n")
    assert run_edge("enroll", "--fleet", est.url, "--token-file", str(file)).returncode == 0
    env = {"EDGE_HOME": str(tmp_path / "second"), "EDGE_ENROLL_TOKEN": est.token("env1")}
    assert run_edge("enroll", "--fleet", est.url, **env).returncode == 0
    piped = subprocess.run(
        [sys.executable, "-m", "edge", "--home", str(tmp_path / "third"), "enroll", "--fleet", est.url, "--token-file", "-"],
        input=est.token("pipe1"), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert set(est.nodes) == {"file1-1", "env1-1", "pipe1-1"}


# --- beside a node ----------------------------------------------------------------------------------------------------


class Trying:
    """`edge enroll --keep-trying` as a process; `errors` grows in a file."""

    def __init__(self, place: Path, home: Path, url: str) -> None:
        self.token, self._said, self._told = place / "token", place / "said", place / "told"
        words = ("enroll", "--keep-trying", "--fleet", url, "--token-file", str(self.token), "--name", "Press 7")
        with self._said.open("wb") as said, self._told.open("wb") as told:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge", "--home", str(home), *words], stdout=told, stderr=said
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def told(self) -> str:
        return self._told.read_text()

    def says(self, part: str) -> bool:
        until(lambda: part in self.said or self.process.poll() is not None)
        return part in self.said

    def hand(self, token: str) -> None:
        """Put a token into its file, in one step: it is read meanwhile."""
        draft = self.token.with_name("draft")
        draft.write_text(token)
        draft.replace(self.token)


@pytest.fixture
def trying(est: EstServer, home: Path, tmp_path: Path) -> Iterator[Trying]:
    found = Trying(tmp_path, home, est.url)
    yield found
    found.process.kill()
    found.process.wait()


def test_it_keeps_trying_through_everything_that_a_fleet_can_say(est: EstServer, trying: Trying, home: Path) -> None:
    assert trying.says("cannot be read: No such file or directory; trying again")
    trying.hand(est.token("gone", revoked=True))
    assert trying.says("this token was revoked")
    est.manner.break_with["cacerts"] = lambda handler: handler.send_error(503)
    trying.hand(est.token())
    assert trying.says("503")
    est.manner.approval = True
    del est.manner.break_with["cacerts"]
    assert trying.says("approve")
    est.approved.add("tok1-1")
    assert trying.process.wait(120) == 0, trying.said
    assert "enrolled  tok1-1 of trial" in trying.told and est.nodes["tok1-1"].label == "Press 7"
    assert len(est.nodes["tok1-1"].keys) == 1
    assert "s" * 24 not in trying.said, "no secret is repeated"
    lines = trying.said.splitlines()
    assert len(lines) == len(set(lines)), f"each is said once: {trying.said}"


def test_who_is_enrolled_keeps_trying_for_nothing(est: EstServer, run_edge: RunEdge, tmp_path: Path) -> None:
    assert run_edge("enroll", "--fleet", est.url, "--token", est.token()).returncode == 0
    est.asked.clear()
    words = ("enroll", "--keep-trying", "--token-file", str(tmp_path / "deleted"))
    done = run_edge(*words, "--fleet", est.url)
    assert (done.returncode, done.stderr, est.asked) == (0, "", []) and "already" in done.stdout
    elsewhere = run_edge(*words, "--fleet", "https://elsewhere.example")
    assert elsewhere.returncode == 0 and "does not go to https://elsewhere.example" in elsewhere.stderr


def test_somebody_else_may_enroll_the_node_meanwhile(est: EstServer, trying: Trying, run_edge: RunEdge) -> None:
    assert trying.says("cannot be read")
    assert run_edge("enroll", "--fleet", est.url, "--token", est.token()).returncode == 0
    trying.hand(est.token("late"))
    assert trying.process.wait(120) == 0 and "already" in trying.told
    assert list(est.nodes) == ["tok1-1"]


@pytest.mark.parametrize(
    "more",
    [[], ["--token-file", "-"], ["--token-file", "t", "--force"], ["--token", "E10"], ["--from", "f"]],
    ids=lambda more: " ".join(more),
)
def test_keep_trying_needs_a_file_that_can_be_read_again(est: EstServer, run_edge: RunEdge, more: list[str]) -> None:
    done = run_edge("enroll", "--keep-trying", "--fleet", est.url, *more)
    assert (done.returncode, "--keep-trying goes with" in done.stderr) == (64, True)


def test_pauses_grow_and_differ_from_node_to_node() -> None:
    away = Obstacle("away", passes=True)
    assert [pause_s(tries, away, 1.0) for tries in (1, 2, 3, 8, 100)] == [2, 4, 8, 256, LONGEST_S]
    assert pause_s(1, away, 0.0) == 1.0
    assert pause_s(1, Obstacle("refused", passes=False), 1.0) == LONGEST_S
    assert pause_s(1, Obstacle("ask later", True, retry_after_s=30.0), 0.5) == 30.0


def test_another_token_is_a_reason_to_try_at_once() -> None:
    clock, tokens, tried, said = [0.0], ["old"], list[tuple[float, str]](), list[str]()

    def attempt() -> Obstacle | None:
        tried.append((clock[0], tokens[0]))
        return Obstacle("refused", passes=False) if tokens[0] == "old" else None

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] >= LONGEST_S + 10:
            tokens[0] = "new"

    keep_trying(attempt, lambda: tokens[0], said.append, lambda: 1.0, sleep, lambda: clock[0])
    assert tried == [(0.0, "old"), (LONGEST_S, "old"), (LONGEST_S + 10, "new")]
    assert len(said) == 1, "the same is said once"


# --- first boot -------------------------------------------------------------------------------------------------------

_TOML = 'url = "{url}"\ntoken = "{token}"\nname = "Press 9"\n'


@pytest.mark.parametrize("form", [_TOML, '{{"url": "{url}", "token": "{token}", "name": "Press 9"}}'])
def test_a_first_boot_file_loses_its_token_once_it_was_used(
    est: EstServer, run_edge: RunEdge, tmp_path: Path, form: str
) -> None:
    seed = tmp_path / "enroll.conf"
    seed.write_text(form.format(url=est.url, token=est.token()))
    seed.chmod(0o640)
    for _ in range(2):
        done = run_edge("enroll", "--from", str(seed))
        assert done.returncode == 0, done.stderr
        assert "tok1" not in seed.read_text().replace("tok1-1", "") and est.url in seed.read_text()
        assert stat.S_IMODE(seed.stat().st_mode) == 0o640
    assert est.nodes["tok1-1"].label == "Press 9"


def test_a_first_boot_that_ended_before_the_token_was_erased_erases_it(
    est: EstServer, run_edge: RunEdge, tmp_path: Path
) -> None:
    token, seed = est.token(), tmp_path / "enroll.toml"
    assert run_edge("enroll", "--fleet", est.url, "--token", token).returncode == 0
    seed.write_text(_TOML.format(url=est.url, token=token))
    assert run_edge("enroll", "--from", str(seed)).returncode == 0
    assert "token =" not in seed.read_text()


def test_a_token_that_was_refused_stays_in_its_file(est: EstServer, run_edge: RunEdge, tmp_path: Path) -> None:
    seed = tmp_path / "enroll.toml"
    text = _TOML.format(url=est.url, token=est.token(expired=True))
    seed.write_text(text)
    assert run_edge("enroll", "--from", str(seed)).returncode == 3
    assert seed.read_text() == text


def test_a_file_without_a_token_on_a_bare_box_is_said(est: EstServer, run_edge: RunEdge, tmp_path: Path) -> None:
    seed = tmp_path / "enroll.toml"
    seed.write_text(f'url = "{est.url}"\n')
    done = run_edge("enroll", "--from", str(seed))
    assert (done.returncode, "has no token any more" in done.stderr) == (64, True)


@pytest.mark.parametrize("text", ["", "token = 5\nurl = 'x'", "[]", "url = 'https://f'\npassword = 'x'", "\0\0", "{"])
def test_a_file_that_is_none_is_refused_in_one_line(
    est: EstServer, run_edge: RunEdge, tmp_path: Path, text: str
) -> None:
    seed = tmp_path / "enroll.toml"
    seed.write_text(text)
    done = run_edge("enroll", "--from", str(seed))
    assert done.returncode == 78 and len(done.stderr.splitlines()) == 1, done.stderr


# --- edge identity ----------------------------------------------------------------------------------------------------


def test_show_renew_and_reset(est: EstServer, broker: Broker, run_edge: RunEdge, home: Path) -> None:
    bare = run_edge("identity", "show", "--json")
    assert (bare.returncode, json.loads(bare.stdout)["enrolled"]) == (1, False)
    assert run_edge("identity", "renew").returncode == 1
    run_edge("enroll", "--fleet", est.url, "--token", est.token())
    shown = json.loads(run_edge("identity", "show", "--json").stdout)
    assert (shown["node"], shown["group"], shown["certificate"]["standing"]) == ("tok1-1", "press", "good")
    assert "PRIVATE" not in run_edge("identity", "show").stdout
    renewed = run_edge("identity", "renew")
    assert renewed.returncode == 0, renewed.stderr
    assert json.loads(run_edge("identity", "show", "--json").stdout)["generation"] == 2
    assert run_edge("identity", "reset").returncode == 130, "nobody there to say yes"
    done = run_edge("identity", "reset", "--yes")
    assert done.returncode == 0 and "revoke" in done.stdout
    assert not list(home.rglob("key.pem"))
    assert run_edge("settings", "--changed").stdout.count("enrollment") == 0


def test_renew_ends_as_enroll_does(est: EstServer, run_edge: RunEdge) -> None:
    run_edge("enroll", "--fleet", est.url, "--token", est.token())
    est.nodes["tok1-1"].revoked = True
    assert run_edge("identity", "renew").returncode == 3
    est.authority.roll_over(crossed=False, keep_old=False)
    est.renew_server()
    assert run_edge("identity", "renew").returncode == 2


def test_a_second_process_waits_its_turn(est: EstServer, run_edge: RunEdge, home: Path) -> None:
    from edge.identity.store import Store

    with Store(home).locked():
        done = run_edge("enroll", "--fleet", est.url, "--token", est.token())
    assert done.returncode == 1 and "another process" in done.stderr


def test_the_doctor_looks_at_the_identity(est: EstServer, run_edge: RunEdge, home: Path) -> None:
    run_edge("enroll", "--fleet", est.url, "--token", est.token())
    said = run_edge("doctor", EDGE_MODEL__NAME="nothing").stdout
    assert "tok1-1 at" in said and "ends in" in said
    (home / "identity" / "current" / "key.pem").chmod(0o644)
    done = run_edge("doctor", EDGE_MODEL__NAME="nothing")
    assert "others may have read" in done.stdout


def test_enrolling_anew_mends_a_damaged_identity(est: EstServer, run_edge: RunEdge, home: Path) -> None:
    run_edge("enroll", "--fleet", est.url, "--token", est.token())
    (home / "identity" / "current" / "key.pem").write_text("spoilt")
    done = run_edge("identity", "show")
    assert done.returncode == 1 and "identity is damaged" in done.stderr and "edge enroll --force" in done.stderr
    assert run_edge("enroll", "--force", "--fleet", est.url, "--token", est.token()).returncode == 0
    assert run_edge("identity", "show").returncode == 0
