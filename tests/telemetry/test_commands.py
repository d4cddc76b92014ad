"""Commands: who may give them, for how long, once each; and over a real broker to a real node's desk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.broker import Broker
from edge.errors import ConfigurationError
from edge.telemetry.commands import (
    Command,
    CommandDesk,
    CommandFailed,
    Refused,
    new_key_pair,
    read_private_key,
    read_public_keys,
    sign,
    verify,
)
from edge.telemetry.mqtt import Connection, Handlers, Message
from tests.telemetry.conftest import PREFIX, HandClock, NodeSide
from tests.waiting import until

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
NODE, NOW_S = "edge/v1/default/n1", 1_800_000_000.0


def signed(command_id: str = "c1", key: Ed25519PrivateKey = KEY, **more: Any) -> bytes:
    fields: dict[str, Any] = {"node": NODE, "name": "drain", "arguments": {}, "now_s": NOW_S, "life_s": 60.0, **more}
    return sign(key, command_id=command_id, **fields)


def judged(data: bytes, *, now_s: float = NOW_S, synced: bool = True, keys: Any = None, command_id: str = "c1") -> str:
    found = verify(
        data,
        [KEY.public_key()] if keys is None else keys,
        command_id=command_id,
        node=NODE,
        now_s=now_s,
        clock_synced=synced,
    )
    return found.code if isinstance(found, Refused) else "held"


def test_a_signed_command_holds_until_it_expires() -> None:
    found = verify(
        signed(arguments={"resume": True}), [OTHER.public_key(), KEY.public_key()],
        command_id="c1", node=NODE, now_s=NOW_S + 60, clock_synced=True,
    )  # fmt: skip
    assert found == Command("c1", "drain", {"resume": True}, NOW_S + 60)
    assert judged(signed(), now_s=NOW_S + 61) == "expired"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (signed(key=OTHER), "bad_signature"),
        (signed().replace(b"drain", b"drown"), "bad_signature"),
        (signed(node="edge/v1/default/n2"), "not_for_us"),
        (signed(command_id="c2"), "not_for_us"),
        (signed(life_s=90_000.0), "bad_times"),
        (signed(now_s=NOW_S + 3600), "bad_times"),
        (signed(arguments=[]), "malformed"),
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b'{"signed": 1, "signature": "AA=="}', "malformed"),
        (b'{"signed": "{}", "signature": "%%"}', "malformed"),
        (b" " * 20_000, "malformed"),
    ],
)
def test_what_is_not_a_command_for_this_node_now_is_refused(data: bytes, code: str) -> None:
    assert judged(data) == code


def test_without_a_key_or_a_clock_nothing_is_obeyed() -> None:
    assert judged(signed(), keys=[]) == "no_key"
    assert judged(signed(), synced=False) == "clock_unsynced"


class Deeds:
    """What a desk carried out."""

    def __init__(self, node: NodeSide, clock: HandClock, fail: bool = False) -> None:
        self.done: list[Mapping[str, Any]] = []
        self.told: list[str] = []
        self._fail = fail
        self.desk = CommandDesk(
            [KEY.public_key()], NODE, node.outbox, {"drain": self._drain},
            lambda: (clock.wall_s, clock.synced), lambda name, _: self.told.append(name),
        )  # fmt: skip

    def _drain(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.done.append(arguments)
        if self._fail:
            raise CommandFailed("it is stuck")
        return {"draining": True}

    def answer(self, command_id: str, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.desk.handle(command_id, data) or b"{}")
        return found


def test_a_command_is_carried_out_once_and_answered_each_time(node: NodeSide, clock: HandClock) -> None:
    deeds = Deeds(node, clock)
    first = deeds.answer("c1", signed())
    assert first == {"id": "c1", "status": "done", "code": "", "text": "", "result": {"draining": True}}
    assert deeds.answer("c1", signed()) == first
    assert deeds.done == [{}] and deeds.told == ["command_executed"]


def test_an_id_is_remembered_over_a_restart(node: NodeSide, clock: HandClock) -> None:
    Deeds(node, clock).answer("c1", signed())
    node.outbox.close()
    again = NodeSide(node.directory, clock)
    deeds = Deeds(again, clock)
    assert deeds.answer("c1", signed())["status"] == "done"
    assert deeds.done == []
    again.stop()


def test_what_was_interrupted_is_not_done_again(node: NodeSide, clock: HandClock) -> None:
    node.outbox.remember_command("c1", NOW_S + 60, None, NOW_S)
    deeds = Deeds(node, clock)
    assert deeds.answer("c1", signed())["status"] == "unknown"
    assert deeds.done == []


def test_failures_and_unknown_names_are_answered(node: NodeSide, clock: HandClock) -> None:
    deeds = Deeds(node, clock, fail=True)
    assert deeds.answer("c1", signed())["text"] == "it is stuck"
    assert deeds.answer("c2", signed("c2", name="shell"))["code"] == "unknown_command"
    assert deeds.answer("c3", signed("c3", key=OTHER))["code"] == "bad_signature"
    assert deeds.told == ["command_failed", "command_refused"]


def test_a_command_over_the_broker_is_answered(node: NodeSide, broker: Broker, clock: HandClock) -> None:
    deeds = Deeds(node, clock)
    uplink = node.connect(broker.address("n1"), answer=deeds.desk.handle)
    until(lambda: uplink.connected)
    answers: list[Message] = []
    connection = Connection(broker.address("fleet"), Handlers(answers.append))
    connection.open()
    connection.subscribe(f"{PREFIX}up/cmd/+")

    def asked() -> bool:
        connection.publish(f"{PREFIX}down/cmd/c1", signed())
        connection.turn(0.3)
        return bool(answers)

    until(asked)
    assert orjson.loads(answers[0].payload)["status"] == "done"
    assert deeds.done == [{}]
    connection.close()


def test_key_files_are_read_and_wrong_ones_are_named(tmp_path: Any) -> None:
    private, public = new_key_pair()
    (tmp_path / "k").write_bytes(private)
    (tmp_path / "k.pub").write_bytes(public + new_key_pair()[1])
    assert read_private_key(tmp_path / "k").public_key() == read_public_keys(tmp_path / "k.pub")[0]
    assert len(read_public_keys(tmp_path / "k.pub")) == 2
    for wrong in (b"", private, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        (tmp_path / "w").write_bytes(wrong)
        with pytest.raises(ConfigurationError, match="Ed25519"):
            read_public_keys(tmp_path / "w")
    with pytest.raises(ConfigurationError, match="Ed25519"):
        read_private_key(tmp_path / "k.pub")
