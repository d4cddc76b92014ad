"""The status page in a real browser, against a served front."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest

from bench.est_server import EstServer
from edge.api.auth import KeyStore
from edge.api.onefile import page_response
from edge.identity.enroll import Wish, enroll
from edge.identity.keeper import Keeper
from edge.identity.store import Store
from edge.identity.token import EnrollmentToken
from edge.messages import Stats
from edge.probes.sample import Probes
from edge.telemetry.clock import SystemClock
from edge.telemetry.outbox import OutboxStats
from tests.api.conftest import Node, Serve, keys, serve
from tests.api.fake_engine import FakeEngine
from tests.page.browser import Browser
from tests.probes.boards import ORIN, plant

__all__ = ["keys", "serve"]

STATS = Stats(
    running=1, waiting=2, slots=4, cells_used=300, cells=1000, cache_bytes=0, cache_hits=0, cache_evictions=0,
    cached_tokens=0, late_ttft_s=0.4, admits=False, admits_tokens=90, admits_streams=3, prefill_tokens=0, decode_tokens=0,
    steps=9, step_p50_s=0.01, step_p99_s=0.02, forward_age_s=0.1, resident_bytes=1 << 27,
)  # fmt: skip
SEEN = "document.querySelectorAll('section').length > 0"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_of_before(browser: Browser) -> None:
    browser.open("about:blank")
    browser.asked.clear()
    browser.complaints.clear()


def stream(node: Node) -> None:
    with node.http() as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def card(browser: Browser, title: str, given: str = "") -> str:
    """The text of one card. `given`: what the page draws before; in one step, else it may have asked the node in between."""
    drawn = f"{given}; draw(); " if given else ""
    return str(browser.value(f"{drawn}document.querySelector('[data-card=\"{title}\"]').innerText"))


def test_it_shows_the_node_and_asks_nobody_else(browser: Browser, serve: Serve) -> None:
    node = serve(FakeEngine(stats=STATS))
    stream(node)
    browser.open(node.url)
    browser.wait_for(SEEN)
    assert browser.value("document.querySelector('h1').textContent") == "fake"
    assert browser.value("document.querySelector('#state').textContent") == "ready"
    assert "of 4 run" in card(browser, "answers")
    assert browser.value("document.querySelectorAll('.slots i.on').length") == 1
    assert browser.value("document.querySelectorAll('.slots i.wait').length") == 2
    assert "50 ms at most" in card(browser, "first token") and "1 in the last 5 min" in card(browser, "first token")
    assert "300 of 1,000" in card(browser, "memory")
    assert "admitted 1, 100 %" in card(browser, "requests since the start")
    assert browser.complaints == []
    elsewhere = [url for url in browser.asked if not url.startswith((node.url, "data:", "about:"))]
    assert browser.asked and not elsewhere


def test_what_the_node_does_not_know_has_no_card_and_no_zero(browser: Browser, serve: Serve) -> None:
    node = serve(FakeEngine())
    browser.open(node.url)
    browser.wait_for(SEEN)
    titles = browser.value("[...document.querySelectorAll('section')].map(s => s.dataset.card)")
    assert not {"fleet", "outbox", "identity"} & set(titles)
    assert "no stream in the last 5 min" in card(browser, "first token")
    assert "not looked at" in card(browser, "machine") and "the engine does not answer" in card(browser, "answers")


def test_the_hardware_is_shown_as_far_as_it_is_told(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    probes = Probes(plant(tmp_path / "board", ORIN), 60.0, lambda change: None)
    probes.start()
    node = serve(FakeEngine(stats=STATS))
    node.front.probes = probes
    browser.open(node.url)
    browser.wait_for(SEEN + " && document.body.innerText.includes('°C')")
    shown = card(browser, "machine")
    assert "49\u00a0°C" in shown and "tj-thermal" in shown and "41 % busy" in shown and "46\u00a0°C" in shown
    assert "\u00a0W" not in shown, "no rail is the GPU's alone"
    assert "NVIDIA Jetson AGX Orin Developer Kit" in shown
    probes.stop()


def test_what_is_old_is_shown_as_old(browser: Browser, serve: Serve) -> None:
    node = serve(FakeEngine(stats=STATS))
    browser.open(node.url)
    browser.wait_for(SEEN)
    node.server.should_exit = True
    browser.wait_for("document.querySelector('main').classList.contains('stale')")
    said = browser.value("document.querySelector('#state').textContent")
    assert said.startswith("the node does not answer; as of ")


def test_a_key_is_asked_for_and_a_wrong_one_is_told(browser: Browser, serve: Serve, keys: KeyStore) -> None:
    inference = keys.create("talks", scopes=("inference",), requests_per_minute=None, created="now")
    metrics = keys.create("looks", scopes=("metrics",), requests_per_minute=None, created="now")
    node = serve(FakeEngine(stats=STATS), keys_required=True)
    browser.open(node.url)
    browser.wait_for("!document.querySelector('#ask').hidden")
    assert "needs a key" in browser.text() and not browser.value(SEEN)

    def give(key: str, expected: str) -> None:
        browser.value(f"document.querySelector('#key').value = '{key}'; document.querySelector('#ask').requestSubmit()")
        browser.wait_for(expected)

    give("edge-wrong", "document.querySelector('#why').textContent.includes('does not know')")
    give(inference, "document.querySelector('#why').textContent.includes('--scope metrics')")
    give(metrics, SEEN)
    assert browser.value("document.querySelector('#state').textContent") == "ready"
    assert all(metrics not in url for url in browser.asked)


@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_a_phone_and_a_desk(browser: Browser, serve: Serve, width: int, tmp_path: Path) -> None:
    node = serve(FakeEngine(stats=STATS))
    browser.size(width, 900)
    browser.open(node.url)
    browser.wait_for(SEEN)
    assert browser.value("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_who_the_node_is_to_its_fleet_has_a_card(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    """What the page is given is what an enrolled node's keeper says."""
    est = EstServer(tmp_path / "est")
    store, clock = Store(tmp_path / "home"), SystemClock()
    asyncio.run(enroll(Wish(est.url, EnrollmentToken.parse(est.token()), "x"), store, clock, lambda _: None))
    est.stop()
    about = Keeper(store, clock, lambda _: "").account()
    node = serve(FakeEngine(stats=STATS))
    browser.open(node.url)
    browser.wait_for(SEEN)
    shown = card(browser, "identity", f"data.identity = {json.dumps(about)}")
    assert "tok1-1 of trial" in shown and "ends in" in shown
    gone = json.dumps(
        {**(about or {}), "certificate_left_s": -90_000, "standing": "expired", "renewal_failure": "revoked"}
    )
    shown = card(browser, "identity", f"data.identity = {gone}")
    assert "ended" in shown and "revoked" in shown
    damaged = json.dumps(Keeper(store, clock, lambda _: "", damage="cert.pem is missing").account())
    assert "serves without its fleet" in card(browser, "identity", f"data.identity = {damaged}")
    assert browser.complaints == []


def test_a_page_whose_name_leads_here_gets_nothing(browser: Browser, serve: Serve) -> None:
    """DNS rebinding, and what any page may send without being asked: with all that a browser puts into its requests."""
    node = serve(FakeEngine(stats=STATS))
    browser.open(f"http://evil.example:{node.port}/health")
    for path in ("/", "/v1/models", "/metrics", "/edge/v1/load", "/edge/v1/decisions", "/openapi.json"):
        assert browser.value(f"fetch('{path}', {{referrerPolicy: 'no-referrer'}}).then(r => r.status)") == 403
    chat = "/v1/chat/completions"
    asked = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    post = f"{{method: 'POST', headers: {{'content-type': 'application/json'}}, body: {json.dumps(json.dumps(asked))}}}"
    refused = browser.value(f"fetch('{chat}', {post}).then(r => r.json()).then(a => a.error.code)")
    assert refused == "host_not_allowed"
    sent = f"{{method: 'POST', mode: 'no-cors', body: {json.dumps(json.dumps(asked))}}}"
    browser.value(f"fetch('{node.url}{chat}', {sent}).catch(() => 0).then(() => 1)")
    read = browser.value(f"fetch('{node.url}/v1/models').then(() => 'read').catch(() => 'kept from it')")
    assert read == "kept from it" and node.engine.streams == []
    browser.open(f"http://localhost:{node.port}/")
    browser.wait_for(SEEN)
    assert browser.value(f"fetch('{chat}', {post}).then(r => r.status)") == 200


def test_an_outbox_with_nothing_in_it_says_so_whatever_its_file_takes(browser: Browser, serve: Serve) -> None:
    empty = OutboxStats(
        bytes=36_864, cap_bytes=1 << 26, records={}, in_memory=0, oldest_age_s=0.0, dropped={}, merged=0, on_disk=True
    )
    node = serve(FakeEngine(stats=STATS))
    browser.open(node.url)
    browser.wait_for(SEEN)
    for records, said in (
        ({}, "not acknowledged\n0\n"),
        ({"metrics": 1_200, "event": 34}, "not acknowledged\n1,234\n"),
    ):
        about = {**asdict(empty), "records": records, "connected": True, "reason": ""}
        shown = card(browser, "outbox", f"data.outbox = {json.dumps(about)}")
        assert said in shown and "takes\n36 KiB" in shown
    assert browser.complaints == []


def test_a_name_with_markup_in_it_is_text(browser: Browser, serve: Serve) -> None:
    node = serve(FakeEngine(stats=STATS))
    browser.open(node.url)
    browser.wait_for(SEEN)
    name = "<img src=x onerror=alert(1)>"
    given = f"data.models[0].name = {name!r}; data.alarms = [{{code: {name!r}, text: {name!r}, cure: ''}}]; draw()"
    images, text = browser.value(f"{given}; [document.querySelectorAll('img').length, document.body.innerText]")
    assert images == 0 and name in text


def test_the_page_holds_nothing_but_itself(serve: Serve) -> None:
    node = serve(keys_required=True)
    with node.http() as client:
        answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in answer.text
    assert len(answer.content) < 24_000


@pytest.mark.parametrize(("package", "name"), [("edge.api", "status.html"), ("edge.control", "page.html")])
def test_what_pages_have_in_common_is_written_once_and_put_into_each(package: str, name: str) -> None:
    common = files("edge.api").joinpath("look.css").read_text()
    answer = page_response(package, name)
    style = re.findall("<style>(.*?)</style>", bytes(answer.body).decode(), re.DOTALL)
    assert len(style) == 1 and style[0].lstrip().startswith(common)
    allowed = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert f"style-src 'sha256-{allowed}'" in answer.headers["content-security-policy"]
    own = {line for line in style[0].replace(common, "", 1).splitlines() if len(line) > 2}
    assert not own & set(common.splitlines())
