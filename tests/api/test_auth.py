"""Keys: shown once, kept as hashes, revocable on a running node, and limited in rate."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge.api.auth import ApiKey, KeyStore, RateLimiter, authorize
from edge.errors import ConfigurationError, InvalidApiKey, PermissionDenied, RateLimited, Unavailable


def create(store: KeyStore, name: str = "line-1", **changes: object) -> str:
    options = {"scopes": ("inference",), "requests_per_minute": None, "created": "2026-11-24T00:00:00Z"}
    return store.create(name, **{**options, **changes})  # type: ignore[arg-type]


def test_a_key_is_found_by_itself_and_by_nothing_else(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    secret = create(store)
    found = store.find(secret)
    assert found is not None
    assert found.name == "line-1"
    assert store.find(secret[:-1]) is None
    assert store.find("") is None


def test_the_file_holds_no_secret_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = create(KeyStore(path))
    assert secret not in path.read_text()
    assert secret[5:20] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys.json"]


def test_another_process_revokes_what_this_one_has_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    node, operator = KeyStore(path), KeyStore(path)
    secret = create(operator)
    assert node.find(secret) is not None
    operator.revoke("line-1")
    assert node.find(secret) is None


def test_names_are_unique_and_must_exist_to_be_revoked(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    create(store)
    with pytest.raises(ConfigurationError, match="already"):
        create(store)
    with pytest.raises(ConfigurationError, match="no key named"):
        store.revoke("nobody")


@pytest.mark.parametrize("content", ["", "{", '{"version": 1}', '{"version": 1, "keys": [{"name": 3}]}'])
def test_a_damaged_file_is_an_error_and_never_no_keys(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"keys\.json cannot be read"):
        KeyStore(path).all()


def test_a_node_says_once_that_keys_cannot_be_checked_and_checks_them_when_they_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, path = KeyStore(tmp_path / "keys.json"), tmp_path / "keys.json"
    secret = create(store)
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    for _ in range(3):
        with pytest.raises(Unavailable) as refused:
            authorize(store, secret, "inference")
        assert str(path) not in refused.value.message
    said = [record for record in caplog.records if record.name == "edge.api.auth"]
    assert [vars(record)["event"] for record in said] == ["keys_unreadable"]
    path.write_bytes(whole)
    assert authorize(store, secret, "inference").name == "line-1"


def test_a_file_that_cannot_be_looked_at_is_an_error_and_never_no_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.json").symlink_to("keys.json")
    with pytest.raises(ConfigurationError, match=r"keys\.json cannot be read .*; give this user the directory"):
        KeyStore(tmp_path / "keys.json").all()


def test_a_newer_versions_file_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"version": 99, "keys": []}))
    with pytest.raises(ConfigurationError, match="newer version"):
        KeyStore(path).all()


def test_scopes_are_kept_apart(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    secret = create(store, scopes=("metrics",))
    assert authorize(store, secret, "metrics").name == "line-1"
    with pytest.raises(PermissionDenied, match="inference"):
        authorize(store, secret, "inference")
    for wrong in (None, "", "edge-wrong"):
        with pytest.raises(InvalidApiKey):
            authorize(store, wrong, "inference")


def test_a_rate_holds_one_minutes_worth_and_says_when_to_come_back() -> None:
    now = [100.0]
    limiter = RateLimiter(lambda: now[0])
    key = ApiKey("k", "edge-abcd", "hash", "", requests_per_minute=6)
    for _ in range(6):
        limiter.take(key)
    with pytest.raises(RateLimited) as refused:
        limiter.take(key)
    assert refused.value.retry_after_s == pytest.approx(10.0)
    now[0] += 10.0
    limiter.take(key)
    with pytest.raises(RateLimited):
        limiter.take(key)


def test_a_key_without_a_rate_is_not_limited() -> None:
    limiter = RateLimiter(lambda: 0.0)
    for _ in range(1000):
        limiter.take(ApiKey("k", "edge-abcd", "hash", ""))


def test_changes_at_one_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for n in range(8):
        KeyStore(path).create(f"old{n}", scopes=("admin",), requests_per_minute=None, created="")

    def change(n: int) -> None:
        KeyStore(path).create(f"new{n}", scopes=("admin",), requests_per_minute=None, created="")
        KeyStore(path).revoke(f"old{n}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))
    assert {key.name for key in KeyStore(path).all()} == {f"new{n}" for n in range(8)}
