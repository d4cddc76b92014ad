"""Who answers: the engine, the fleet, or nobody now. A fake engine, a fleet on real sockets, the node's own HTTP server."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from edge.engine.port import EngineStatus
from edge.errors import Declined, EngineDown, Overloaded
from edge.fleet.central import HOP_HEADER, FleetLimits
from edge.fleet.upstreams import Upstream as Configured
from edge.messages import FirstToken, Offer, Outlook, Token
from tests.api.conftest import Serve
from tests.api.fake_engine import ADMITTED, TIMING, FakeEngine, Step, says
from tests.fleet.upstream import Mood, Upstream, running, wait_until

MESSAGES: Any = [{"role": "user", "content": "hello"}]
BODY = {"model": "fake", "messages": MESSAGES}
ANSWER = "The fleet says hello."
SHORT = FleetLimits(budget_s=1.5, whole_budget_s=3.0, bytes_per_hour=0, cost_per_hour=0.0, retry_share=0.2)
LONG_S = 300.0
"""Nobody waits so long, whatever the machine does besides."""
LATE_S = 600.0
"""So late would the engine be that the fleet is sooner, however slow its last answers were."""


def too_late(work: Any) -> list[Step]:
    """An engine that would be late, and says so if it may."""
    if work.late == "decline":
        return [Declined("all are taken", reason="slots", late_s=LATE_S, hopeless=False, prompt_tokens=7)]
    late = Outlook(admitted=False, reason="slots", ttft_s=LATE_S, cached_tokens=0)
    return [step if not isinstance(step, Offer) else Offer(0, 7, False, late) for step in says("local")(work)]


@pytest.fixture
def fleet() -> Iterator[Upstream]:
    with running(Upstream()) as upstream:
        yield upstream


def configured(upstream: Upstream, **fields: Any) -> Configured:
    """It has ample time for everything, unless `fields` say otherwise."""
    patient = {"connect_timeout_s": 60.0, "first_token_timeout_s": 60.0, "idle_timeout_s": 60.0}
    return Configured(**{"name": "central", "url": upstream.url, "model": "central", **patient, **fields})


def headers_of(answer: httpx.Response) -> tuple[str | None, str | None]:
    return answer.headers.get("x-edge-route"), answer.headers.get("x-edge-reason")


def text_of(answer: httpx.Response) -> str:
    if answer.headers["content-type"].startswith("application/json"):
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e.get("choices"))


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_admitted_never_leaves(serve: Serve, fleet: Upstream, stream: bool) -> None:
    node = serve(FakeEngine(says("here")), [configured(fleet)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert (headers_of(answer), text_of(answer)) == (("local", None), "here")
    assert answer.headers["x-edge-class"] == "slo" and fleet.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_what_would_be_late_is_answered_by_the_fleet_that_is_sooner(
    serve: Serve, fleet: Upstream, stream: bool
) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert (headers_of(answer), text_of(answer)) == (("fleet", "slots"), ANSWER)
    assert '"model":"central"' in answer.text.replace(" ", ""), "the model names who really answered"
    assert "usage" in answer.text if not stream else '"usage"' not in answer.text, "usage only where it was asked for"


def test_the_official_client_reads_what_the_fleet_streams(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    stream = node.openai().chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(fleet.words)


def test_the_callers_key_and_cookies_never_travel_and_the_nodes_own_does(
    serve: Serve, fleet: Upstream, tmp_path: Any
) -> None:
    (tmp_path / "fleet.key").write_text("node-secret\n")
    node = serve(FakeEngine(too_late), [configured(fleet, api_key_file=tmp_path / "fleet.key")], mode="fleet")
    with node.http(headers={"authorization": "Bearer caller-secret", "cookie": "a=b", "x-request-id": "r-1"}) as client:
        client.post("/v1/chat/completions", json=BODY)
    ((head, body),) = fleet.requests
    assert "caller-secret" not in head and "cookie" not in head.lower()
    assert "authorization: bearer node-secret" in head.lower() and "x-request-id: r-1" in head.lower()
    assert f"{HOP_HEADER}: 1" in head.lower()
    assert body["model"] == "central" and body["messages"] == MESSAGES


def test_an_engine_that_is_known_to_be_full_is_not_asked_again(serve: Serve, fleet: Upstream) -> None:
    full = Declined("all are taken", reason="slots", late_s=LATE_S, hopeless=False, prompt_tokens=7)
    engine = FakeEngine(says("here"), full=full)
    node = serve(engine, [configured(fleet)], mode="fleet")
    with node.http() as client:
        assert headers_of(client.post("/v1/chat/completions", json=BODY)) == ("fleet", "slots")
        assert engine.streams == []
        kept = client.post("/v1/chat/completions", json=BODY, headers={"X-Edge-Policy": "local-only"})
    assert text_of(kept) == "here"


@pytest.mark.parametrize("headers", [{"X-Edge-Policy": "local-only"}, {HOP_HEADER: "1"}])
def test_what_must_stay_and_what_was_handed_on_is_answered_here_though_late(
    serve: Serve, fleet: Upstream, headers: dict[str, str]
) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json=BODY, headers=headers)
    assert (headers_of(answer), text_of(answer)) == (("local", "slots"), "local")
    assert answer.headers["x-edge-class"] == "best-effort" and fleet.requests == []


def test_a_wrong_policy_is_named(serve: Serve) -> None:
    with serve().http() as client:
        answer = client.post("/v1/chat/completions", json=BODY, headers={"X-Edge-Policy": "somewhere"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "X-Edge-Policy"


@pytest.mark.parametrize(
    ("mood", "stream"),
    [("garbage", True), *itertools.product(["hung", "broken", "no json", "empty"], [False, True]), ("slow", True)],
)
def test_a_fleet_that_does_not_answer_costs_little_time_and_the_answer_is_late(
    serve: Serve, fleet: Upstream, mood: Mood, stream: bool
) -> None:
    fields = {"first_token_timeout_s": 0.5} if mood in ("hung", "slow") else {}
    node = serve(FakeEngine(too_late), [configured(fleet, **fields)], mode="fleet", limits=SHORT)
    fleet.mood, fleet.slow_s = mood, LONG_S
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert text_of(answer) == "local"
    assert answer.headers["x-edge-class"] == "best-effort"
    assert node.front.fleet is not None and node.front.fleet.states()[0].error_share > 0, "it was asked, and failed"


def test_a_second_upstream_answers_when_the_first_does_not(serve: Serve, fleet: Upstream) -> None:
    with running(Upstream(mood="broken")) as first:
        upstreams = [configured(first, name="first", priority=0), configured(fleet, name="second")]
        node = serve(FakeEngine(too_late), upstreams, mode="fleet")
        with node.http() as client:
            answer = client.post("/v1/chat/completions", json=BODY)
        assert (headers_of(answer)[0], text_of(answer)) == ("fleet", ANSWER)
        assert len(first.requests) == len(fleet.requests) == 1


def test_the_breaker_opens_within_three_failures_and_closes_soon_after_the_fleet_is_well(
    serve: Serve, fleet: Upstream
) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    assert node.front.fleet is not None
    wait_until(lambda: node.front.fleet is not None and node.front.fleet.knows("central"))  # the first probe is over
    fleet.mood, fleet.sick = "broken", True
    with node.http() as client:
        for _ in range(10):
            assert text_of(client.post("/v1/chat/completions", json=BODY)) == "local"
        assert len(fleet.requests) == 3
        assert node.front.fleet.states()[0].state == "open"
        fleet.mood, fleet.sick = "well", False
        wait_until(lambda: node.front.fleet is not None and node.front.fleet.states()[0].state == "half-open")
        assert text_of(client.post("/v1/chat/completions", json=BODY)) == ANSWER
        assert node.front.fleet.states()[0].state == "closed"


def test_a_fleet_that_asks_for_time_is_left_alone_and_counts_as_well(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    fleet.mood = "busy"
    with node.http() as client:
        for _ in range(5):
            assert text_of(client.post("/v1/chat/completions", json=BODY)) == "local"
    assert len(fleet.requests) == 1
    assert node.front.fleet is not None and node.front.fleet.states()[0].state == "closed"


def test_the_fleets_word_on_a_wrong_request_is_passed_on(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    fleet.mood = "bad request"
    with pytest.raises(openai.BadRequestError, match="too long for us"):
        node.openai().chat.completions.create(model="fake", messages=MESSAGES)


def test_half_a_stream_of_the_fleets_ends_with_an_error_not_as_if_it_were_whole(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    fleet.mood = "half"
    with node.http() as client:
        text = client.post("/v1/chat/completions", json={**BODY, "stream": True}).text
    assert '"code":"fleet_unavailable"' in text and "[DONE]" not in text


@pytest.mark.parametrize(("phase", "reason"), [("loading", "loading"), ("down", "engine_down")])
def test_without_an_engine_the_fleet_answers(serve: Serve, fleet: Upstream, phase: Any, reason: str) -> None:
    engine = FakeEngine(facts=None, status=EngineStatus(phase, "no", 0.5, 0, None), refusal=EngineDown("down"))
    if phase == "loading":
        engine.refusal = None
    node = serve(engine, [configured(fleet)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json=BODY)
        assert (headers_of(answer), text_of(answer)) == (("fleet", reason), ANSWER)
        fleet.mood = "broken"
        assert client.post("/v1/chat/completions", json=BODY).status_code == 503
        assert (
            client.post("/v1/chat/completions", json=BODY, headers={"X-Edge-Policy": "local-only"}).status_code == 503
        )


def test_a_full_queue_and_a_draining_node_hand_on(serve: Serve, fleet: Upstream) -> None:
    engine = FakeEngine(refusal=Overloaded("full"))
    node = serve(engine, [configured(fleet)], mode="fleet")
    with node.http() as client:
        assert headers_of(client.post("/v1/chat/completions", json=BODY)) == ("fleet", "queue_full")
        engine.refusal = None
        node.front.drain.begin()
        assert headers_of(client.post("/v1/chat/completions", json=BODY)) == ("fleet", "draining")


def test_a_model_that_only_the_fleet_has_is_asked_for_there(serve: Serve, fleet: Upstream) -> None:
    fleet.models.append("large")
    node = serve(FakeEngine(), [configured(fleet)], mode="fleet")
    wait_until(lambda: node.front.fleet is not None and node.front.fleet.knows("large"))
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "model": "large"})
        assert headers_of(answer) == ("fleet", "model_not_here")
        assert fleet.requests[-1][1]["model"] == "large"
        assert client.post("/v1/chat/completions", json={**BODY, "model": "nonesuch"}).status_code == 404


def test_strict_refuses_with_the_time_to_come_back_or_none_if_it_is_hopeless(serve: Serve) -> None:
    hopeless = False

    def script(work: Any) -> list[Step]:
        assert work.late == "decline"
        return [Declined("too long", reason="slo_ttft", late_s=2.5, hopeless=hopeless, prompt_tokens=700)]

    with serve(FakeEngine(script), mode="strict").http() as client:
        answer = client.post("/v1/chat/completions", json=BODY)
        assert answer.status_code == 429 and answer.headers["retry-after-ms"] == "2500"
        hopeless = True
        answer = client.post("/v1/chat/completions", json=BODY)
        assert answer.status_code == 429 and "retry-after" not in answer.headers
        assert answer.headers["x-should-retry"] == "false"  # else the official client tries all the same
        assert answer.json()["error"]["code"] == "slo_unreachable"


def test_what_would_wait_too_long_is_told_to_come_back_even_where_the_model_promises_nothing(serve: Serve) -> None:
    declined = Declined("it would wait too long", reason="wait", late_s=30.0, hopeless=True, prompt_tokens=7)
    with serve(FakeEngine(lambda work: [declined]), mode="best-effort").http() as client:
        answer = client.post("/v1/chat/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
    assert answer.headers["retry-after"] == "30"


def test_decisions_and_load_say_what_happened_and_never_what_was_said(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    with node.http() as client:
        client.post("/v1/chat/completions", json={**BODY, "service_tier": "priority"})
        client.post("/v1/chat/completions", json={**BODY, "stream": True}, headers={"X-Edge-Policy": "local-only"})
        newest, oldest = client.get("/edge/v1/decisions").json()["decisions"]
        assert (oldest["route"], oldest["reason"], oldest["upstream"], oldest["tier"]) == (
            "fleet",
            "slots",
            "central",
            "priority",
        )
        assert (newest["route"], newest["fleet_reason"], newest["outcome"]) == ("late", "policy", "ok")
        assert newest["ttft_s"] > 0 and newest["predicted_ttft_s"] == LATE_S
        assert len(client.get("/edge/v1/decisions?limit=1").json()["decisions"]) == 1
        load = client.get("/edge/v1/load").json()
        assert load["fleet"]["available"] and load["fleet"]["upstreams"][0]["state"] == "closed"
        assert {"decision": "fleet", "reason": "slots", "count": 1} in load["decisions"]
        metrics = client.get("/metrics").text
        assert 'edge_admission_total{decision="fleet",reason="slots"} 1.0' in metrics
        for page in (json.dumps(load), json.dumps([newest, oldest]), metrics):
            assert "hello" not in page


# --- an engine that dies in the middle of an answer -------------------------------------------------------------------


def dies_after(*texts: str, then: Exception | None = None) -> Any:
    def script(work: Any) -> list[Step]:
        tokens: list[Step] = [Token(0, 0, text, 1) for text in texts]
        return [Offer(0, 7, False, ADMITTED), FirstToken(0, TIMING), *tokens, then or EngineDown("killed")]

    return script


BEGUN = ("The pump was started", " by the first shift,")


def test_the_fleet_goes_on_where_the_engine_broke_off(serve: Serve, fleet: Upstream) -> None:
    fleet.words = [" and", " then", " on."]
    node = serve(FakeEngine(dies_after(*BEGUN)), [configured(fleet)], mode="fleet")
    stream = node.openai().chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, max_tokens=10
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "The pump was started by the first shift, and then on."
    assert len({c.id for c in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    usage = chunks[-1].usage
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (7, 5)
    ((_, body),) = fleet.requests
    assert body["messages"] == [*MESSAGES, {"role": "assistant", "content": "".join(BEGUN)}]
    assert (body["max_tokens"], body["continue_final_message"], body["add_generation_prompt"]) == (8, True, False)
    entry = next(node.front.decisions.last(1))
    assert (entry["continued"], entry["continued_at"], entry["outcome"]) == ("central", len("".join(BEGUN)), "ok")


def test_white_space_that_templates_cut_off_comes_once(serve: Serve, fleet: Upstream) -> None:
    fleet.words = ["\n", "- two"]
    node = serve(FakeEngine(dies_after("These are the pumps that run now:", "\n")), [configured(fleet)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": True})
    assert text_of(answer) == "These are the pumps that run now:\n- two"
    assert fleet.requests[0][1]["messages"][-1]["content"] == "These are the pumps that run now:"


def test_a_beginning_that_the_client_gave_stays_one_message(serve: Serve, fleet: Upstream) -> None:
    fleet.words = [" on."]
    node = serve(FakeEngine(dies_after(*BEGUN)), [configured(fleet)], mode="fleet")
    given = [*MESSAGES, {"role": "assistant", "content": "Well: "}]
    body = {**BODY, "messages": given, "continue_final_message": True, "add_generation_prompt": False, "stream": True}
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert text_of(answer).endswith("first shift, on.")
    assert fleet.requests[0][1]["messages"] == [*MESSAGES, {"role": "assistant", "content": "Well: " + "".join(BEGUN)}]


@pytest.mark.parametrize("continues", [True, False])
def test_an_upstream_that_begins_anew_repeats_nothing(serve: Serve, fleet: Upstream, continues: bool) -> None:
    fleet.words = ["The pump was", " started by the first shift, and", " on."]
    node = serve(FakeEngine(dies_after(*BEGUN)), [configured(fleet, continues=continues)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": True, "max_completion_tokens": 50})
    assert text_of(answer) == "The pump was started by the first shift, and on."
    assert answer.text.endswith("data: [DONE]\n\n")
    ((_, body),) = fleet.requests
    assert ("continue_final_message" in body) == continues
    assert body["max_tokens"] == (48 if continues else 50)


@pytest.mark.parametrize("sent", [("First", " this"), ("",)])
def test_an_answer_of_which_little_was_sent_is_asked_for_whole(
    serve: Serve, fleet: Upstream, sent: tuple[str, ...]
) -> None:
    fleet.words = ["Fir", "st this", " and", " on."]
    node = serve(FakeEngine(dies_after(*sent)), [configured(fleet)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": True})
    assert text_of(answer) == "First this and on."
    assert fleet.requests[0][1]["messages"] == MESSAGES


@pytest.mark.parametrize("words", [["Other", " words"], ["First"]])
def test_an_answer_that_is_another_one_ends_with_an_error(serve: Serve, fleet: Upstream, words: list[str]) -> None:
    fleet.words = words
    node = serve(FakeEngine(dies_after("First", " this")), [configured(fleet)], mode="fleet")
    with node.http() as client:
        text = client.post("/v1/chat/completions", json={**BODY, "stream": True}).text
    assert '"code":"fleet_unavailable"' in text and "[DONE]" not in text


@pytest.mark.parametrize(
    "more",
    [{"logprobs": True}, {"n": 2}, {"response_format": {"type": "json_object"}}],
    ids=["logprobs", "two answers", "a grammar"],
)
def test_what_cannot_be_gone_on_with_honestly_ends_with_the_engines_error(
    serve: Serve, fleet: Upstream, more: dict[str, Any]
) -> None:
    node = serve(FakeEngine(dies_after("First", " this")), [configured(fleet)], mode="fleet")
    with node.http() as client:
        text = client.post("/v1/chat/completions", json={**BODY, **more, "stream": True}).text
    assert '"code":"engine_down"' in text and "[DONE]" not in text and fleet.requests == []


def test_local_only_answers_are_not_gone_on_with_elsewhere(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(dies_after("First")), [configured(fleet)], mode="fleet")
    with node.http(headers={"X-Edge-Policy": "local-only"}) as client:
        text = client.post("/v1/chat/completions", json={**BODY, "stream": True}).text
    assert '"code":"engine_down"' in text and fleet.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_dies_before_anything_was_sent_costs_the_client_nothing(
    serve: Serve, fleet: Upstream, stream: bool
) -> None:
    texts = () if stream else ("First", " this")
    node = serve(FakeEngine(dies_after(*texts)), [configured(fleet)], mode="fleet")
    with node.http() as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert (headers_of(answer), text_of(answer)) == (("fleet", "engine_down"), ANSWER)


def test_a_client_that_leaves_is_noticed_by_the_fleet(serve: Serve, fleet: Upstream) -> None:
    fleet.words = ["word "] * 1_000_000  # for longer than anything stands still
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    with node.http() as client, client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as answer:
        next(answer.iter_bytes())
    wait_until(lambda: fleet.left == 1)


def test_a_client_that_does_not_read_holds_up_nobody_else(serve: Serve, fleet: Upstream) -> None:
    fleet.words = ["word " * 40_000] * 400  # far more than fits into all that lies between
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    with node.connect() as deaf:
        body = json.dumps({**BODY, "stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        deaf.sendall(f"{head}Content-Length: {len(body)}".encode() + b"\r\n\r\n" + body)
        wait_until(lambda: len(fleet.requests) == 1)

        def stands() -> bool:
            before = fleet.said
            time.sleep(0.5)
            return fleet.said == before > 0

        wait_until(stands)
        fleet.words = ["quick"]
        with node.http() as client:
            assert text_of(client.post("/v1/chat/completions", json={**BODY, "stream": True})) == "quick"
        wait_until(lambda: fleet.finished)  # it counts after it has written
        assert len(fleet.requests) == 2 and fleet.finished == 1, "the deaf one's answer is still under way"


def test_traffic_is_capped_by_the_hour(fleet: Upstream) -> None:
    from edge.fleet.central import Central

    central = Central([configured(fleet)], FleetLimits(1.0, 1.0, 1000, 0.0, 0.2))
    assert central.view().available
    central.bytes_cap.spend(1001, time.monotonic())
    assert central.view().reason == "bytes_cap"


def test_many_at_once_are_all_answered(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(too_late), [configured(fleet)], mode="fleet")
    texts: list[str] = []

    def one() -> None:
        with node.http() as client:
            texts.append(text_of(client.post("/v1/chat/completions", json={**BODY, "stream": True})))

    threads = [threading.Thread(target=one) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [ANSWER] * 40
    assert node.front.decisions.counts == {("fleet", "slots"): 40}
