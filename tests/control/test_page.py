"""The fleet's page in a real browser, against a real server with a real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.fleet_side import Box, FleetSide
from edge.telemetry.mqtt import Connection, Handlers
from tests.control.conftest import NewBox, let_in
from tests.page.browser import Browser
from tests.waiting import until

SIGNED_IN = "!document.querySelector('#in').hidden"
LISTED = SIGNED_IN + " && document.querySelectorAll('#nodelist tbody tr').length > 0"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def page(browser: Browser, fleet: FleetSide) -> Browser:
    """The page, signed in, at desk width."""
    browser.size(1440, 900)
    browser.open(fleet.people_url)
    browser.asked.clear()
    browser.complaints.clear()
    browser.wait_for(f"{SIGNED_IN} || !document.querySelector('#ask').hidden")
    if not browser.value(SIGNED_IN):
        give_key(browser, fleet.admin_key)
        browser.wait_for(SIGNED_IN)
    return browser


def give_key(browser: Browser, key: str) -> None:
    browser.value(f"document.querySelector('#key').value = '{key}'; document.querySelector('#ask').requestSubmit()")


def row(browser: Browser, name: str) -> str:
    """The text of a node's line; empty while there is none."""
    find = f"[...document.querySelectorAll('#nodelist tbody tr')].find(r => r.querySelector('td span').textContent === '{name}')"
    return str(browser.value(f"({find} || {{innerText: ''}}).innerText"))


def press(browser: Browser, name: str, button: str) -> None:
    find = f"[...document.querySelectorAll('#nodelist tbody tr')].find(r => r.querySelector('td span').textContent === '{name}')"
    browser.value(f"[...{find}.querySelectorAll('button')].find(b => b.textContent === '{button}').click()")


def report(fleet: FleetSide, box: object, *messages: tuple[str, dict[str, object]]) -> None:
    name = box.name  # type: ignore[attr-defined]
    done: list[int] = []
    connection = Connection(box.address(), Handlers(published=lambda number, code: done.append(code)))  # type: ignore[attr-defined]
    connection.open()
    for rest, document in messages:
        connection.publish(f"edge/v1/default/{name}/up/{rest}", json.dumps(document).encode())
    while len(done) < len(messages):
        connection.turn(0.1)
    assert done == [0] * len(messages)
    connection.close()


def test_a_wrong_key_is_told_and_a_right_one_shows_the_nodes(
    browser: Browser, fleet: FleetSide, new_box: NewBox
) -> None:
    new_box("first-seen").enroll(fleet.token())
    browser.size(1440, 900)
    browser.open(fleet.people_url)
    browser.asked.clear()
    browser.complaints.clear()
    browser.wait_for("!document.querySelector('#ask').hidden")
    give_key(browser, "edge-wrong")
    browser.wait_for("document.querySelector('#why').textContent.includes('does not know')")
    assert not browser.value(SIGNED_IN)
    give_key(browser, fleet.admin_key)
    browser.wait_for(LISTED)
    assert "first-seen" in browser.text() and browser.value("document.querySelector('h1').textContent") == "plant"
    assert browser.value("document.cookie") == "", "scripts do not see the session"
    elsewhere = [url for url in browser.asked if not url.startswith((fleet.people_url, "data:", "about:"))]
    assert browser.asked and not elsewhere
    assert all(fleet.admin_key not in url for url in browser.asked)
    assert [c for c in browser.complaints if "401" not in c] == []


def test_what_a_node_tells_is_shown(page: Browser, fleet: FleetSide, new_box: NewBox) -> None:
    box = new_box("teller")
    box.enroll(fleet.token())
    let_in(box)
    boot = {"node": box.name, "boot_id": "b"}
    report(
        fleet, box, ("info", {**boot, "version": "9.8.7", "model": "tiny"}), ("state", {**boot, "state": "online"}),
    )  # fmt: skip
    until(lambda: fleet.node("teller")["version"])
    until(lambda: "9.8.7" in row(page, "teller") and "online" in row(page, "teller"))
    shown = row(page, "teller")
    assert "online" in shown and "tiny" in shown and "active" in shown and " s ago" in shown


def test_a_pending_node_is_let_in_and_another_is_shut_out(page: Browser, fleet: FleetSide, new_box: NewBox) -> None:
    box, token = new_box("knocks"), fleet.token(approval=True)
    box.enroll(token)
    page.wait_for("document.querySelector('#nodelist').innerText.includes('knocks')")
    assert "pending" in row(page, "knocks")
    press(page, "knocks", "Approve")
    until(lambda: "active" in row(page, "knocks"))
    assert box.enroll(token).status_code == 200
    press(page, "knocks", "Revoke")
    page.wait_for("document.querySelector('#sure').open")
    page.value("document.querySelector('#no').click()")
    assert fleet.node("knocks")["state"] == "active", "asked first"
    press(page, "knocks", "Revoke")
    page.value("document.querySelector('#yes').click()")
    until(lambda: "revoked" in row(page, "knocks"))
    assert fleet.node("knocks")["revoked_by"] == "admin:first" and box.renew().status_code == 403


def test_a_token_is_made_and_shown_once(page: Browser, fleet: FleetSide, new_box: NewBox) -> None:
    page.value("document.querySelector('[data-tab=tokens]').click()")
    page.value(
        "document.querySelector('#make').elements.label.value = 'from-page'; document.querySelector('#make').requestSubmit()"
    )
    page.wait_for("document.querySelector('#made').open")
    command = str(page.value("document.querySelector('#command').textContent"))
    assert command.startswith(f"edge enroll --fleet {fleet.url} --token E10{fleet.pin}::")
    page.value("document.querySelector('#seen').click()")
    assert command.rpartition(":")[2] not in str(page.value("document.documentElement.outerHTML"))
    from edge.identity.token import EnrollmentToken

    box = new_box("x")
    assert box.enroll(EnrollmentToken.parse(command.split()[-1])).status_code == 200 and box.name == "from-page"
    page.wait_for("document.querySelector('#tokenlist').innerText.includes('from-page')")
    page.value("document.querySelector('[data-tab=audit]').click()")
    page.wait_for("document.querySelector('#auditlist').innerText.includes('token created')")
    page.value("document.querySelector('[data-tab=nodes]').click()")


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("tab", ["nodes", "tokens", "audit"])
def test_it_fits_a_phone_and_a_desk(
    page: Browser, fleet: FleetSide, new_box: NewBox, tmp_path: Path, width: int, tab: str
) -> None:
    new_box("a-node-with-a-name-as-long-as-names-of-boxes-can-be-in-practice").enroll(fleet.token(approval=True))
    page.size(width, 900)
    page.value(f"document.querySelector('[data-tab={tab}]').click()")
    page.wait_for(f"document.querySelectorAll('#{tab} tbody tr').length > 0")
    page.wait_for(f"document.documentElement.scrollWidth <= {width}")  # nothing sticks out
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    page.value("document.querySelector('[data-tab=nodes]').click()")


def test_a_name_with_markup_in_it_is_text(page: Browser, fleet: FleetSide, new_box: NewBox) -> None:
    name = "<img src=x onerror=alert(1)>"
    new_box(name).enroll(fleet.token())
    page.wait_for("document.querySelector('#nodelist').innerText.includes('onerror')")
    assert page.value("document.querySelectorAll('img').length") == 0


def test_old_figures_are_shown_as_old(browser: Browser, own_fleet: FleetSide) -> None:
    own_fleet.start()
    browser.open(own_fleet.people_url)
    browser.wait_for("!document.querySelector('#ask').hidden")
    give_key(browser, own_fleet.admin_key)
    browser.wait_for(SIGNED_IN)
    own_fleet.kill()
    browser.wait_for("document.querySelector('#in').classList.contains('stale')")
    assert "does not answer" in browser.text()


def test_what_is_wrong_with_the_server_is_on_the_page(browser: Browser, own_fleet: FleetSide) -> None:
    own_fleet.start()
    browser.open(own_fleet.people_url)
    browser.wait_for("!document.querySelector('#ask').hidden")
    give_key(browser, own_fleet.admin_key)
    browser.wait_for("document.querySelector('#problem').innerText.includes('no connection to the broker')")
    own_fleet.start_broker()
    browser.wait_for("document.querySelector('#problem').hidden")


def test_who_signs_in_again_sees_what_happens(browser: Browser, own_fleet: FleetSide, tmp_path: Path) -> None:
    """A session that ended while something was asked for, and a page that then stood still."""
    own_fleet.start()
    Box(tmp_path / "a", own_fleet, "first-box").enroll(own_fleet.token(approval=True))
    key = own_fleet.cli("admin-key", "create", "second").stdout.strip()
    browser.open(own_fleet.people_url)
    browser.wait_for("!document.querySelector('#ask').hidden")
    give_key(browser, own_fleet.admin_key)
    browser.wait_for("document.querySelector('#nodelist').innerText.includes('Approve')")
    # In the background a page asks for nothing by itself: what ends its session is the press.
    browser.value("Object.defineProperty(document, 'hidden', {configurable: true, get: () => true}); 0")
    browser.wait_for("!busy")
    assert own_fleet.cli("admin-key", "revoke", "first").returncode == 0
    press(browser, "first-box", "Approve")
    browser.wait_for("!document.querySelector('#ask').hidden")
    browser.value("delete document.hidden")
    give_key(browser, key)
    browser.wait_for(LISTED)
    Box(tmp_path / "b", own_fleet, "later-box").enroll(own_fleet.token())
    browser.wait_for("document.querySelector('#nodelist').innerText.includes('later-box')")


def test_signing_out_leaves_nothing_on_the_page(page: Browser, fleet: FleetSide) -> None:
    page.value("document.querySelector('#out').click()")
    page.wait_for("!document.querySelector('#ask').hidden")
    assert page.value("document.querySelectorAll('#nodelist tr').length") == 0


def test_what_was_asked_for_before_signing_out_is_not_shown_afterwards(
    page: Browser, fleet: FleetSide, new_box: NewBox
) -> None:
    """The list is held back until the session is over."""
    new_box("secret").enroll(fleet.token())
    page.value(
        "window.held = []; const real = window.fetch; window.fetch = async (url, options) => {"
        " const answer = await real(url, options);"
        " if (String(url).includes('/nodes?')) await new Promise(go => window.held.push(go)); return answer; }"
    )
    page.wait_for("window.held.length > 0")
    page.value("document.querySelector('#out').click()")
    page.wait_for("!document.querySelector('#ask').hidden")
    page.value("window.held.forEach(go => go()); setTimeout(() => { window.shown = true; }, 300); 0")
    page.wait_for("window.shown")
    assert page.value("document.querySelectorAll('#nodelist tr').length") == 0


def test_the_page_holds_nothing_but_itself(fleet: FleetSide) -> None:
    answer = httpx.get(fleet.people_url, timeout=60, trust_env=False)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in answer.text
    assert "style=" not in answer.text and len(answer.content) < 24_000
