"""What the fleet tells a node at enrollment, among the other sources of settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from edge.effective import ENROLLED_SETTINGS, Effective, load
from edge.errors import EnrollmentFailed
from edge.identity.applied import as_toml, settings_of
from edge.identity.wire import Bootstrap

_WHOLE = {
    "fleet": "acme",
    "node": "press-7",
    "group": "press",
    "mqtt": {"url": "mqtts://broker.example:8883"},
    "fallback": {"url": "https://gateway.example/v1", "model": "big"},
    "command_keys": ["-----BEGIN PUBLIC KEY-----"],
}


def enrolled(home: Path, bootstrap: dict[str, Any], file: str = "# none\n", **env: str) -> Effective:
    path = home / ENROLLED_SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_toml(settings_of(Bootstrap.model_validate(bootstrap))))
    (home / "edge.toml").write_text(file)
    return load(home, env, {})


def told(effective: Effective) -> set[str]:
    return {key for key, origin in effective.origins.items() if origin.source == "enrollment"}


def unusable(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What is said of such an enrollment. Threads of other tests may say other things meanwhile."""
    return [said for said in caplog.records if vars(said).get("event") == "enrollment_unusable"]


def test_all_of_it_comes_before_the_defaults(home: Path) -> None:
    assert told(enrolled(home, _WHOLE)) == {
        "mqtt.url", "mqtt.group", "mqtt.node", "mqtt.prefix", "mqtt.ca_file", "mqtt.cert_file", "mqtt.key_file",
        "mqtt.command_keys_file", "fleet.url", "fleet.model", "fleet.ca_file", "fleet.cert_file", "fleet.key_file",
    }  # fmt: skip


def test_file_environment_and_flag_come_before_it(home: Path) -> None:
    effective = enrolled(home, _WHOLE, '[mqtt]\ngroup = "mine"\n', EDGE_MQTT__NODE="other")
    assert (effective.settings.mqtt.group, effective.settings.mqtt.node) == ("mine", "other")
    assert effective.settings.mqtt.url == "mqtts://broker.example:8883"


@pytest.mark.parametrize("url", ["", "mqtt://plain.example", "mqtts://other.example"])
def test_another_broker_does_not_get_the_fleets_certificates(home: Path, url: str) -> None:
    effective = enrolled(home, _WHOLE, f'[mqtt]\nurl = "{url}"\n')
    mqtt = effective.settings.mqtt
    assert (mqtt.url, mqtt.cert_file, mqtt.ca_file) == (url, None, None)
    assert "fleet.url" in told(effective)


@pytest.mark.parametrize("file", ['url = "https://api.example/v1"', 'file = "upstreams.toml"'])
def test_another_fallback_takes_nothing_from_the_enrollment(home: Path, file: str) -> None:
    effective = enrolled(home, _WHOLE, f"[fleet]\n{file}\n")
    assert not {key for key in told(effective) if key.startswith("fleet.")}


def test_a_password_in_the_fleets_address_keeps_no_node_from_starting(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a fleet before this version could write it. A node that ends at its settings hears of no better ones."""
    tables = settings_of(Bootstrap.model_validate(_WHOLE))
    tables["fleet"]["url"] = "https://u:secret@gateway.example/v1"
    path = home / ENROLLED_SETTINGS
    path.parent.mkdir(parents=True)
    path.write_bytes(as_toml(tables))
    effective = load(home, {}, {})
    assert effective.settings.fleet.url == "" and "mqtt.url" in told(effective)
    (said,) = unusable(caplog)
    assert "secret" not in said.getMessage()


def test_a_fleet_that_still_hands_out_a_password_does_not_keep_a_node_from_its_certificate(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    effective = enrolled(home, {**_WHOLE, "fallback": {"url": "https://u:secret@gateway.example/v1"}})
    assert effective.settings.fleet.url == "" and "mqtt.url" in told(effective)
    assert len(unusable(caplog)) == 1


def test_a_certificate_of_ones_own_takes_its_own_key(home: Path) -> None:
    effective = enrolled(home, _WHOLE, '[mqtt]\ncert_file = "a.pem"\nkey_file = "b.pem"\n')
    assert str(effective.settings.mqtt.cert_file) == "a.pem"
    assert effective.settings.mqtt.url == "mqtts://broker.example:8883"


def test_a_fallback_with_a_public_certificate_is_checked_by_the_systems_cas(home: Path) -> None:
    effective = enrolled(home, {**_WHOLE, "fallback": {"url": "https://g.example/v1", "ca": "system"}})
    assert effective.settings.fleet.ca_file is None
    assert effective.settings.fleet.cert_file is not None


def test_without_tls_no_certificate_is_shown(home: Path) -> None:
    plain = {**_WHOLE, "mqtt": {"url": "mqtt://b"}, "fallback": {"url": "http://g/v1"}}
    assert not {key for key in told(enrolled(home, plain)) if "file" in key} - {"mqtt.command_keys_file"}


def test_a_setting_of_a_later_version_is_passed_over(home: Path) -> None:
    effective = enrolled(home, _WHOLE)
    with (home / ENROLLED_SETTINGS).open("a") as file:
        file.write('[later]\nthing = "x"\n')
    assert load(home, {}, {}).settings == effective.settings


def test_text_of_the_fleets_stays_text(home: Path) -> None:
    trick = 'x"\n[server]\nhost = "0.0.0.0'
    effective = enrolled(home, {**_WHOLE, "fallback": {"url": "https://g/v1", "model": trick}})
    assert effective.settings.fleet.model == trick
    assert effective.settings.server.host == "127.0.0.1"


@pytest.mark.parametrize("url", ["https://g .example/v1", "https:///v1"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises((EnrollmentFailed, ValueError)):
        settings_of(Bootstrap.model_validate({**_WHOLE, "fallback": {"url": url}}))
