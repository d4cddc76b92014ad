"""Several models on one node: who answers, who waits, who leaves. Fake engines behind the real pool, front and HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from edge.api import KeyStore
from edge.errors import ModelUnusable
from edge.messages import Outlook
from edge.residency import Spec
from tests.api.conftest import Node, Serve
from tests.api.fake_engine import FakeEngine, Step, answer, says, whole
from tests.api.test_dispatch import configured, dies_after, headers_of, text_of
from tests.fleet.upstream import Upstream, running, wait_until
from tests.residency.fake_planner import MIB, FakePlanner, header

MAIN = Spec("fake", "fake", aliases=("house",), main=True)
A, B = Spec("a", "a", aliases=("alpha",)), Spec("b", "b")
LATE = Outlook(admitted=False, reason="", ttft_s=0.01, cached_tokens=0)


def further(*texts: str) -> FakeEngine:
    """An engine that promises nothing, as further models' do."""

    def script(work: Any) -> list[Step]:
        return whole(*answer(*texts), outlook=LATE)

    return FakeEngine(script)


def held(until: threading.Event, *texts: str) -> FakeEngine:
    """Each answer has begun and goes on when the test says so."""

    def script(work: Any) -> list[Step]:
        first, *rest = whole(*answer(*texts), outlook=LATE)
        return [first, *rest[:2], until, *rest[2:]]

    return FakeEngine(script)


def ask(node: Node, model: str | None, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "hello"}], **({"model": model} if model else {}), **fields}
    with node.http() as client:
        return client.post("/v1/chat/completions", json=body)


def act(node: Node, name: str, verb: str, **query: str) -> httpx.Response:
    with node.http() as client:
        return client.post(f"/edge/v1/models/{name}/{verb}", params=query)


def state_of(node: Node, name: str) -> dict[str, Any]:
    with node.http() as client:
        found = client.get("/edge/v1/models").json()["models"]
    return next(m for m in found if m["name"] == name)


def standing(node: Node, name: str) -> str:
    return str(state_of(node, name)["state"])


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture
def meanwhile() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def fleet() -> Iterator[Upstream]:
    with running(Upstream(models=["central", "a"])) as upstream:
        yield upstream


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_picks_its_model_by_name_or_alias_and_the_main_one_by_none(serve: Serve, stream: bool) -> None:
    node = serve(FakeEngine(says("main")), specs=[MAIN, A, B], further={"a": [further("of a")], "b": [further("of b")]})
    for model, name, text in [
        (None, "fake", "main"),
        ("fake", "fake", "main"),
        ("house", "fake", "main"),
        ("a", "a", "of a"),
        ("alpha", "a", "of a"),
        ("b", "b", "of b"),
    ]:
        found = ask(node, model, stream=stream)
        assert text_of(found) == text
        assert f'"model":"{name}"' in found.text
    assert code_of(ask(node, "c")) == (404, "model_not_found")
    assert node.loads == ["fake-1", "a-1", "b-1"]


def test_only_the_main_model_promises_and_the_others_say_why_not(serve: Serve) -> None:
    node = serve(specs=[MAIN, A], further={"a": [further("x")]})
    assert ask(node, "fake").headers["x-edge-class"] == "slo"
    first, second = ask(node, "a"), ask(node, "a")
    assert (first.headers["x-edge-class"], first.headers["x-edge-reason"]) == ("best-effort", "loading")
    assert (second.headers["x-edge-class"], second.headers["x-edge-reason"]) == ("best-effort", "further_model")
    with node.http() as client:
        newest = client.get("/edge/v1/decisions?limit=1").json()["decisions"][0]
        assert (newest["model"], newest["route"], newest["reason"]) == ("a", "late", "further_model")
        assert "edge_slo_violations_total{" not in client.get("/metrics").text


def test_tokens_are_those_of_the_model_that_is_named(serve: Serve) -> None:
    engine, other = FakeEngine(), further("x")
    node = serve(engine, specs=[MAIN, A], further={"a": [other]})
    with node.http() as client:
        assert client.post("/tokenize", json={"model": "alpha", "content": "x"}).json()["tokens"] == [120]
        assert client.post("/detokenize", json={"model": "a", "tokens": [120]}).json()["content"] == "x"
    assert len(other.tokenized) == 1 and engine.tokenized == []


def test_all_models_are_listed_loaded_or_not(serve: Serve) -> None:
    planner = FakePlanner(broken={"b": ModelUnusable("there is no file /b.gguf; check the path")})
    node = serve(specs=[MAIN, A, B], further={"a": [further("x")]}, planner=planner)
    with node.http() as client:
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert list(cards) == ["fake", "a", "b"]
        assert [cards[name]["edge"]["state"] for name in cards] == ["ready", "unloaded", "failed"]
        assert cards["fake"]["edge"]["class"] == "slo" and cards["a"]["edge"]["class"] == "best-effort"
        assert cards["a"]["meta"]["n_vocab"] == header().vocabulary and cards["a"]["edge"]["aliases"] == ["alpha"]
        assert client.get("/v1/models/alpha").json()["id"] == "a"
        assert client.get("/v1/models/c").status_code == 404
        assert [m["name"] for m in client.get("/edge/v1/load").json()["models"]] == ["fake", "a", "b"]
        assert 'edge_model_ready{model="fake"} 1.0' in client.get("/metrics").text
    assert [model.id for model in node.openai().models.list()] == ["fake", "a", "b"]


# --- not loaded yet ---------------------------------------------------------------------------------------------------


def test_requests_wait_for_their_model_and_the_main_one_answers_meanwhile(
    serve: Serve, meanwhile: ThreadPoolExecutor
) -> None:
    slow = further("at last")
    slow.loads = threading.Event()
    node = serve(specs=[MAIN, A], further={"a": [slow]})
    asked = [meanwhile.submit(ask, node, "a", stream=n % 2 == 0) for n in range(4)]
    wait_until(lambda: state_of(node, "a")["waiting"] == 4)
    assert standing(node, "a") == "loading"
    assert code_of(ask(node, "a")) == (429, "overloaded"), "the line is bounded"
    assert ask(node, "fake").status_code == 200
    slow.loads.set()
    assert [text_of(f.result()) for f in asked] == ["at last"] * 4
    assert node.loads == ["fake-1", "a-1"]


@pytest.mark.parametrize("changes", [{"mode": "strict"}, {"mode": "fleet", "offline": "strict"}])
def test_strict_refuses_at_once_and_the_model_is_loaded_all_the_same(serve: Serve, changes: dict[str, Any]) -> None:
    node = serve(specs=[MAIN, A], further={"a": [further("x")]}, **changes)
    refused = ask(node, "a")
    assert code_of(refused) == (503, "loading") and int(refused.headers["retry-after"]) >= 1
    wait_until(lambda: standing(node, "a") == "ready")
    assert text_of(ask(node, "a")) == "x"


def test_the_fleet_answers_while_the_model_is_loaded(serve: Serve, fleet: Upstream) -> None:
    slow = further("from here")
    slow.loads = threading.Event()
    node = serve(specs=[MAIN, A], further={"a": [slow]}, upstreams=[configured(fleet)], mode="fleet")
    wait_until(lambda: node.front.fleet is not None and node.front.fleet.knows("a"))
    assert headers_of(ask(node, "alpha")) == ("fleet", "loading")
    assert fleet.requests[-1][1]["model"] == "a"
    slow.loads.set()
    wait_until(lambda: standing(node, "a") == "ready")
    assert text_of(ask(node, "a")) == "from here"


def test_a_model_that_the_fleet_lacks_or_a_fleet_that_is_silent_is_waited_for(serve: Serve, fleet: Upstream) -> None:
    node = serve(
        specs=[MAIN, A, B],
        further={"a": [further("a here")], "b": [further("b here")]},
        upstreams=[configured(fleet)],
        mode="fleet",
    )
    wait_until(lambda: node.front.fleet is not None and node.front.fleet.knows("a"))
    assert text_of(ask(node, "b")) == "b here"
    fleet.mood = "broken"
    assert text_of(ask(node, "a")) == "a here"


def test_who_waits_too_long_is_told_and_the_next_one_finds_it_loaded(serve: Serve) -> None:
    slow = further("x")
    slow.loads = threading.Event()
    node = serve(specs=[MAIN, A], further={"a": [slow]}, load_wait_s=0.1)
    assert code_of(ask(node, "a")) == (503, "loading")
    slow.loads.set()
    wait_until(lambda: standing(node, "a") == "ready")
    assert text_of(ask(node, "a")) == "x"


def test_a_client_that_leaves_while_it_waits_gives_up_its_place(serve: Serve, meanwhile: ThreadPoolExecutor) -> None:
    go_on = threading.Event()
    node = serve(specs=[MAIN, A, B], further={"a": [held(go_on, "a", "b")], "b": [further("x")]}, room_mib=2)
    streaming = meanwhile.submit(ask, node, "a", stream=True)
    wait_until(lambda: state_of(node, "a")["in_flight"] == 1)
    body = b'{"model": "b", "content": "x"}'
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with node.connect() as leaving:
        leaving.sendall(head % len(body) + body)
        wait_until(lambda: state_of(node, "b")["waiting"] == 1)
    wait_until(lambda: standing(node, "b") == "unloaded")
    assert standing(node, "a") == "ready", "nobody wants its room any more"
    go_on.set()
    assert text_of(streaming.result()) == "ab"
    assert node.loads == ["fake-1", "a-1"]


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_running_stream_ends_before_its_model_leaves(serve: Serve, meanwhile: ThreadPoolExecutor) -> None:
    go_on = threading.Event()
    first = held(go_on, "one ", "two ", "three")
    node = serve(specs=[MAIN, A, B], further={"a": [first, further("anew")], "b": [further("of b")]}, room_mib=2)
    streaming = meanwhile.submit(ask, node, "a", stream=True)
    wait_until(lambda: state_of(node, "a")["in_flight"] == 1)
    waiting = meanwhile.submit(ask, node, "b")
    wait_until(lambda: standing(node, "a") == "draining")
    assert not first.stopped and node.loads == ["fake-1", "a-1"]
    again = meanwhile.submit(ask, node, "a")  # it takes no new ones: this waits behind the one for b
    wait_until(lambda: state_of(node, "a")["waiting"] == 1)
    go_on.set()
    assert text_of(streaming.result()) == "one two three"
    assert text_of(waiting.result()) == "of b"
    assert text_of(again.result()) == "anew"
    assert node.loads == ["fake-1", "a-1", "b-1", "a-1"] and first.stopped
    with node.http() as client:
        assert 'edge_model_unloads_total{model="a",reason="room"} 1.0' in client.get("/metrics").text


def test_what_can_never_fit_is_refused_with_figures(serve: Serve) -> None:
    planner = FakePlanner(sizes={"a": 7 * MIB})
    node = serve(specs=[MAIN, A], further={}, planner=planner, room_mib=5)
    refused = ask(node, "a")
    assert code_of(refused) == (503, "no_memory")
    assert "needs 7 MiB, and 4 MiB can be had" in refused.json()["error"]["message"]
    assert code_of(act(node, "a", "load")) == (503, "no_memory")
    assert ask(node, "fake").status_code == 200


def test_pinned_models_are_not_made_to_leave(serve: Serve) -> None:
    pinned = Spec("a", "a", pinned=True, preload=True)
    node = serve(specs=[MAIN, pinned, B], further={"a": [further("x")], "b": [further("y")]}, room_mib=2)
    wait_until(lambda: standing(node, "a") == "ready")
    assert code_of(ask(node, "b")) == (503, "no_memory")
    assert standing(node, "a") == "ready"


def test_a_model_that_nobody_asks_leaves(serve: Serve) -> None:
    engine = further("x")
    node = serve(specs=[MAIN, Spec("a", "a", idle_s=0.2)], further={"a": [engine]})
    assert text_of(ask(node, "a")) == "x"
    wait_until(lambda: standing(node, "a") == "unloaded")
    assert engine.stopped
    with node.http() as client:
        assert 'edge_model_unloads_total{model="a",reason="idle"} 1.0' in client.get("/metrics").text


# --- operators --------------------------------------------------------------------------------------------------------


def test_operators_load_and_unload(serve: Serve, meanwhile: ThreadPoolExecutor) -> None:
    go_on = threading.Event()
    node = serve(specs=[MAIN, A], further={"a": [held(go_on, "x", "y"), further("anew")]})
    loaded = act(node, "alpha", "load")
    assert (loaded.status_code, loaded.json()["state"], loaded.json()["bytes_planned"]) == (200, "ready", MIB)
    streaming = meanwhile.submit(ask, node, "a", stream=True)
    wait_until(lambda: state_of(node, "a")["in_flight"] == 1)
    begun = act(node, "a", "unload", wait="false")
    assert (begun.status_code, begun.json()["state"], begun.json()["in_flight"]) == (202, "draining", 1)
    go_on.set()
    assert text_of(streaming.result()) == "xy"
    ended = act(node, "a", "unload")
    assert (ended.status_code, ended.json()["state"]) == (200, "unloaded")
    assert act(node, "a", "load", wait="false").status_code == 202
    assert text_of(ask(node, "a")) == "anew"


def test_what_stays_loaded_and_what_is_not_there_is_said(serve: Serve) -> None:
    node = serve(specs=[MAIN, Spec("a", "a", pinned=True)], further={"a": [further("x")]})
    for name in ("fake", "house", "a"):
        assert code_of(act(node, name, "unload")) == (409, "cannot_unload")
    assert code_of(act(node, "c", "load")) == (404, "model_not_found")
    assert code_of(act(node, "a", "drop")) == (404, "not_found")
    assert code_of(act(node, "a", "load", wait="perhaps")) == (400, "invalid_value")


def test_loading_and_unloading_needs_a_key_for_it_and_no_web_page_may(serve: Serve, keys: KeyStore) -> None:
    made = {
        s: keys.create(s, scopes=(s,), requests_per_minute=None, created="") for s in ("metrics", "admin", "inference")
    }  # type: ignore[arg-type]
    node = serve(specs=[MAIN, A], further={"a": [further("x")]}, keys_required=True)
    with node.http() as client:
        for scope, expected in {"metrics": 403, "inference": 403, "admin": 200}.items():
            headers = {"authorization": f"Bearer {made[scope]}"}
            assert client.post("/edge/v1/models/a/load", headers=headers).status_code == expected
        assert client.get("/edge/v1/models", headers={"authorization": f"Bearer {made['metrics']}"}).status_code == 200
    open_node = serve(specs=[MAIN, A], further={"a": [further("x")]})
    with open_node.http(headers={"origin": "https://evil.example"}) as client:
        assert client.post("/edge/v1/models/a/load").status_code == 403


# --- a new version ----------------------------------------------------------------------------------------------------


def swapping(
    serve: Serve, name: str, old: FakeEngine, new: FakeEngine, *, room_mib: int, **fields: Any
) -> tuple[Node, FakePlanner]:
    planner = FakePlanner()
    specs = [MAIN, A, *fields.pop("specs", [])]
    if name == "fake":
        node = serve(
            old, specs=specs, further={"fake": [new], "a": [further("x")]}, planner=planner, room_mib=room_mib, **fields
        )
    else:
        node = serve(specs=specs, further={"a": [old, new]}, planner=planner, room_mib=room_mib, **fields)
        assert act(node, "a", "load").status_code == 200
    planner.versions[name] = 2
    return node, planner


@pytest.mark.parametrize("name", ["fake", "a"])
def test_with_room_for_both_the_new_version_is_ready_before_the_old_one_leaves(
    serve: Serve, meanwhile: ThreadPoolExecutor, name: str
) -> None:
    go_on = threading.Event()
    old, new = held(go_on, "old ", "one"), further("new one")
    new.loads = threading.Event()
    node, _ = swapping(serve, name, old, new, room_mib=100)
    streaming = meanwhile.submit(ask, node, name, stream=True)
    wait_until(lambda: len(old.streams) == 1)
    loading = meanwhile.submit(act, node, name, "load")
    wait_until(lambda: bool(state_of(node, name)["replacing"]))
    during = meanwhile.submit(ask, node, name)
    wait_until(lambda: len(old.streams) == 2)
    with node.http() as client:
        assert client.get("/health/ready").status_code == 200
    new.loads.set()
    assert loading.result().json()["state"] == "ready"
    assert text_of(ask(node, name)) == "new one"
    assert not old.stopped
    go_on.set()
    assert text_of(streaming.result()) == text_of(during.result()) == "old one"
    wait_until(lambda: old.stopped)
    assert node.loads[-2:] == [f"{name}-1", f"{name}-2"]
    assert act(node, name, "load").status_code == 200 and node.loads[-1] == f"{name}-2" and not new.stopped


@pytest.mark.parametrize("name", ["fake", "a"])
def test_without_room_for_both_the_old_version_drains_and_new_requests_wait(
    serve: Serve, meanwhile: ThreadPoolExecutor, name: str
) -> None:
    go_on = threading.Event()
    old, new = held(go_on, "old ", "one"), further("new one")
    node, _ = swapping(serve, name, old, new, room_mib=2 if name == "a" else 1)
    streaming = meanwhile.submit(ask, node, name, stream=True)
    wait_until(lambda: len(old.streams) == 1)
    loading = meanwhile.submit(act, node, name, "load")
    wait_until(lambda: standing(node, name) == "draining")
    waiting: list[Future[httpx.Response]] = [meanwhile.submit(ask, node, name) for _ in range(3)]
    wait_until(lambda: state_of(node, name)["waiting"] == 3)
    go_on.set()
    assert text_of(streaming.result()) == "old one"
    assert [text_of(f.result()) for f in waiting] == ["new one"] * 3
    assert loading.result().status_code == 200 and old.stopped


def test_without_room_for_both_the_fleet_answers_meanwhile(
    serve: Serve, fleet: Upstream, meanwhile: ThreadPoolExecutor
) -> None:
    go_on = threading.Event()
    old, new = held(go_on, "old ", "one"), further("new one")
    node, _ = swapping(serve, "fake", old, new, room_mib=1, upstreams=[configured(fleet)], mode="fleet")
    streaming = meanwhile.submit(ask, node, "fake", stream=True)
    wait_until(lambda: len(old.streams) == 1)
    loading = meanwhile.submit(act, node, "fake", "load")
    wait_until(lambda: standing(node, "fake") == "draining")
    assert headers_of(ask(node, "house")) == ("fleet", "loading")
    go_on.set()
    assert text_of(streaming.result()) == "old one" and loading.result().status_code == 200
    assert text_of(ask(node, "fake")) == "new one"


@pytest.mark.parametrize("name", ["fake", "a"])
def test_a_new_version_that_does_not_load_leaves_the_old_one_where_it_is(serve: Serve, name: str) -> None:
    old, new = further("old one"), FakeEngine(unloadable=ModelUnusable("the file is nonsense"))
    node, _ = swapping(serve, name, old, new, room_mib=100)
    refused = act(node, name, "load")
    assert code_of(refused) == (503, "model_unusable") and "nonsense" in refused.json()["error"]["message"]
    assert text_of(ask(node, name)) == "old one" and not old.stopped


@pytest.mark.parametrize("name", ["fake", "a"])
def test_without_room_for_both_the_old_version_comes_back_when_the_new_one_does_not_load(
    serve: Serve, name: str
) -> None:
    planner = FakePlanner()
    engines = [further("old one"), FakeEngine(unloadable=ModelUnusable("the file is nonsense")), further("back")]
    if name == "fake":
        node = serve(engines[0], specs=[MAIN], further={"fake": engines[1:]}, planner=planner, room_mib=1)
    else:
        node = serve(specs=[MAIN, A], further={"a": engines}, planner=planner, room_mib=2)
        act(node, "a", "load")
    planner.versions[name] = 2
    assert code_of(act(node, name, "load")) == (503, "model_unusable")
    assert text_of(ask(node, name)) == "back"
    assert node.loads[-3:] == [f"{name}-1", f"{name}-2", f"{name}-1"]


def test_if_the_old_file_is_gone_too_the_reason_is_said_until_the_file_is_right(serve: Serve) -> None:
    broken = FakeEngine(unloadable=ModelUnusable("the file is nonsense"))
    planner = FakePlanner(gone={"a-1"})
    node = serve(
        specs=[MAIN, A], further={"a": [further("old"), broken, further("third")]}, planner=planner, room_mib=2
    )
    act(node, "a", "load")
    planner.versions["a"] = 2
    assert code_of(act(node, "a", "load")) == (503, "model_unusable")
    assert code_of(ask(node, "a")) == (503, "model_unusable")
    assert node.loads.count("a-2") == 1, "a file that is known not to load takes nobody's room again"
    planner.versions["a"] = 3
    assert act(node, "a", "load").status_code == 200
    assert text_of(ask(node, "a")) == "third"


# --- failures ---------------------------------------------------------------------------------------------------------


def test_an_engine_that_dies_is_loaded_again_by_the_next_request_and_touches_nobody_else(serve: Serve) -> None:
    first, second, main = further("one"), further("two"), FakeEngine(says("main"))
    node = serve(main, specs=[MAIN, A], further={"a": [first, second]})
    assert text_of(ask(node, "a")) == "one"
    first.dead.set()
    wait_until(lambda: standing(node, "a") == "failed")
    assert ask(node, "a").status_code in (200, 503), "it is left alone for a moment"
    wait_until(lambda: ask(node, "a").status_code == 200)
    assert text_of(ask(node, "a")) == "two"
    assert not main.stopped and text_of(ask(node, "fake")) == "main"


def test_a_pinned_engine_that_dies_comes_back_by_itself(serve: Serve) -> None:
    engines = [further("one"), further("two")]
    node = serve(specs=[MAIN, Spec("a", "a", pinned=True, preload=True)], further={"a": engines})
    wait_until(lambda: standing(node, "a") == "ready")
    engines[0].dead.set()
    wait_until(lambda: state_of(node, "a")["loads"] == 2)
    assert text_of(ask(node, "a")) == "two"


def test_the_fleet_goes_on_with_a_further_models_answer_under_its_name(serve: Serve, fleet: Upstream) -> None:
    fleet.words = [" and", " on."]
    node = serve(
        specs=[MAIN, A],
        further={"a": [FakeEngine(dies_after("The pump was started", " by the first shift,"))]},
        upstreams=[configured(fleet)],
        mode="fleet",
    )
    wait_until(lambda: node.front.fleet is not None and node.front.fleet.knows("a"))
    assert act(node, "a", "load").status_code == 200
    found = ask(node, "a", stream=True)
    assert text_of(found) == "The pump was started by the first shift, and on."
    assert fleet.requests[-1][1]["model"] == "a"


def test_a_model_that_does_not_exist_harms_no_other_and_is_tried_again(serve: Serve) -> None:
    planner = FakePlanner(broken={"b": ModelUnusable("there is no file /b.gguf; check the path")})
    node = serve(specs=[MAIN, A, B], further={"a": [further("x")], "b": [further("y")]}, planner=planner)
    refused = ask(node, "b")
    assert code_of(refused) == (503, "model_unusable") and "no file /b.gguf" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert text_of(ask(node, "a")) == "x" and text_of(ask(node, "fake")) == "Hello"
    del planner.broken["b"]
    wait_until(lambda: ask(node, "b").status_code == 200)


def test_the_official_client_is_told_apart_what_is_loading_and_what_is_broken(serve: Serve) -> None:
    import openai

    planner = FakePlanner(broken={"b": ModelUnusable("no file")})
    node = serve(specs=[MAIN, B], further={}, planner=planner)
    with pytest.raises(openai.InternalServerError) as caught:
        node.openai().chat.completions.create(model="b", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_unusable"


def test_a_draining_node_loads_nothing(serve: Serve) -> None:
    node = serve(specs=[MAIN, A], further={"a": [further("x")]})
    node.front.drain.begin()
    assert code_of(ask(node, "a")) == (503, "draining")
    assert code_of(act(node, "a", "load")) == (503, "draining")
    assert node.loads == ["fake-1"]
