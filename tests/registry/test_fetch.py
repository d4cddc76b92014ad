"""Downloads over a real server that misbehaves: what is here in the end is the file, or nothing."""

from __future__ import annotations

import json
import os
import random
import ssl
from pathlib import Path

import pytest
import trustme

from bench.file_server import Asked, Cut, Damage, FileServer, Served, Status
from edge.errors import DownloadFailed, ModelUnusable
from edge.registry import web
from edge.registry.fetch import Fetch, Patience
from edge.registry.partial import Partial, State
from edge.registry.resolve import Registry
from edge.registry.source import Located
from tests.registry.conftest import SOON, Node, Watcher, gguf_bytes, sha


@pytest.fixture
def other_bytes(tmp_path: Path) -> bytes:
    return gguf_bytes(tmp_path / "other.gguf", seed=2)


def test_a_whole_download_is_published(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    pulled = node.pull("m")
    assert node.blobs() == [sha(model_bytes)]
    assert (node.store / "blobs" / sha(model_bytes)).read_bytes() == model_bytes
    assert not pulled.trusted
    assert node.state("m") == "here"
    assert not node.partials()
    assert node.watcher.most == len(model_bytes)


def test_cut_connections_are_gone_on_from_where_they_stopped(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    chance = random.Random(7)
    server.faults.extend(Cut(chance.randrange(1, 200_000)) for _ in range(20))
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    assert node.blobs() == [sha(model_bytes)]
    starts = [int(asked.headers["range"][6:-1]) for asked in server.gets("/m.gguf")[1:]]
    assert starts == sorted(starts)
    assert len(set(starts)) == len(starts) == 20, "each request went on behind the one before"
    assert {asked.headers["if-range"] for asked in server.gets("/m.gguf")[1:]} == {'"1"'}


def test_what_an_ended_process_left_is_gone_on_with(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    with pytest.raises(
        DownloadFailed, match=r"answered 503, 3 times in a row; 1.0 MB are here, the same command goes on"
    ):
        node.pull("m", Patience(tries=3, pause_s=0.001))
    assert node.state("m") == "partial"
    assert node.partials()[0].read_bytes() == model_bytes[:1_000_000]
    node.pull("m")
    assert node.watcher.begun[-1] == ("m.gguf", 1_000_000, len(model_bytes))
    assert server.gets("/m.gguf")[-1].headers["range"] == "bytes=1000000-"
    assert node.blobs() == [sha(model_bytes)]


def test_a_changed_file_begins_anew(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, other_bytes: bytes
) -> None:
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed):
        node.pull("m", Patience(tries=3, pause_s=0.001))
    served.data, served.etag = other_bytes, '"2"'
    node.pull("m")
    assert node.blobs() == [sha(other_bytes)]
    assert any("another file now" in note for note in node.watcher.notes_said)


def test_a_file_that_changes_midway_begins_anew_whatever_was_learnt_of_it(
    node: Node, server: FileServer, served: Served, other_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one command. The address allows GET alone: size and sum come with the first answer, and others with the second."""
    whole, longer = server.answer, other_bytes + bytes(64)
    served.stated = {"x-checksum-sha256": sha(served.data)}

    def answer(asked: Asked) -> Served | Status:
        if len(server.gets("/m.gguf")) > 1:
            served.data, served.etag, served.stated = longer, '"2"', {"x-checksum-sha256": sha(longer)}
        return Status(403) if asked.method == "HEAD" else whole(asked)

    monkeypatch.setattr(server, "answer", answer)
    server.faults.append(Cut(1_000_000))
    node.know("m", f"{server.url}/m.gguf")
    node.pull("m")
    assert node.blobs() == [sha(longer)]


@pytest.mark.parametrize("mark", ['"2"', None])
def test_a_server_that_heeds_no_conditions_gets_no_two_files_joined(
    node: Node, server: FileServer, served: Served, other_bytes: bytes, mark: str | None
) -> None:
    served.conditions = False
    served.last_modified = "Wed, 21 Oct 2015 07:28:00 GMT"
    served.etag = None if mark is None else '"1"'
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed):
        node.pull("m", Patience(tries=3, pause_s=0.001))
    served.data, served.etag, served.last_modified = other_bytes, mark, "Wed, 21 Oct 2026 07:28:00 GMT"
    node.pull("m")
    assert node.blobs() == [sha(other_bytes)]


def test_without_any_mark_of_the_file_nothing_is_joined(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, other_bytes: bytes
) -> None:
    served.etag = None
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed):
        node.pull("m", Patience(tries=3, pause_s=0.001))
    served.data = other_bytes
    node.pull("m")
    assert node.blobs() == [sha(other_bytes)]


def test_a_date_is_a_mark_too(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    served.etag, served.last_modified = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT"
    server.faults.append(Cut(1_000_000))
    node.know("m", f"{server.url}/m.gguf")
    node.pull("m")
    assert server.gets("/m.gguf")[-1].headers["if-range"] == served.last_modified
    assert node.blobs() == [sha(model_bytes)]


def test_a_server_without_ranges_starts_over(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    served.ranges = False
    server.faults.extend([Cut(1_000_000), Cut(2_000_000)])
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    assert node.blobs() == [sha(model_bytes)]


def test_a_server_without_ranges_that_always_cuts_is_given_up(node: Node, server: FileServer, served: Served) -> None:
    served.ranges = False
    server.choose = lambda: Cut(1_000_000)
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(
        DownloadFailed, match=r"does not go on in the middle, and the connection broke off .*`edge models add"
    ):
        node.pull("m")
    assert node.blobs() == []


def test_bytes_damaged_once_are_fetched_once_more(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    server.faults.extend([Cut(1_000_000), Damage(2_000_000)])
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    assert node.blobs() == [sha(model_bytes)]
    assert any("came damaged" in note for note in node.watcher.notes_said)


def test_bytes_damaged_always_are_refused_and_nothing_is_kept(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    server.choose = lambda: Damage(2_000_000)
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    with pytest.raises(DownloadFailed, match=r"is refused: its sha256 is .* nothing is kept"):
        node.pull("m")
    assert (node.blobs(), node.partials(), node.state("m")) == ([], [], "not here")


def test_a_partial_spoilt_on_the_disk_is_noticed(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    with pytest.raises(DownloadFailed):
        node.pull("m", Patience(tries=3, pause_s=0.001))
    part = node.partials()[0]
    with part.open("r+b") as file:
        file.seek(500_000)
        file.write(b"spoilt")
    node.pull("m")
    assert node.blobs() == [sha(model_bytes)]


def test_a_power_cut_leaves_only_what_was_on_the_disk(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed):
        node.pull("m", Patience(tries=3, pause_s=0.001))
    part = node.partials()[0]
    state = json.loads(part.with_suffix(".json").read_text())
    part.with_suffix(".json").write_text(json.dumps({**state, "boot": "another", "durable_bytes": 300_000}))
    with part.open("r+b") as file:  # as a file system may leave what it had not written yet
        file.seek(300_000)
        file.write(bytes(700_000))
    node.pull("m")
    assert server.gets("/m.gguf")[-1].headers["range"] == "bytes=300000-"
    assert node.blobs() == [sha(model_bytes)]


def test_bytes_without_a_state_do_not_count(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    with pytest.raises(DownloadFailed):
        node.pull("m", Patience(tries=3, pause_s=0.001))
    node.partials()[0].with_suffix(".json").write_text("{ half")
    node.pull("m")
    assert "range" not in server.gets("/m.gguf")[-1].headers
    assert node.blobs() == [sha(model_bytes)]


def test_a_length_that_is_a_lie_is_no_whole_file(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    served.announced = len(model_bytes) + 10
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed):
        node.pull("m")
    assert node.blobs() == []


def test_a_size_that_the_manifest_does_not_name_is_refused_at_once(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    node.know("m", f"{server.url}/m.gguf", size_bytes=len(model_bytes) - 1)
    with pytest.raises(DownloadFailed, match="it is another file"):
        node.pull("m")
    assert not server.gets("/m.gguf")


def test_a_body_without_a_length_is_taken_to_its_end(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    served.chunked = True
    node.know("m", f"{server.url}/m.gguf")
    node.pull("m")
    assert node.blobs() == [sha(model_bytes)]


def test_a_chunked_body_that_breaks_off_is_no_whole_file(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    served.chunked = True
    server.faults.append(Cut(1_000_000))
    node.know("m", f"{server.url}/m.gguf")
    node.pull("m")
    assert node.blobs() == [sha(model_bytes)]


def test_an_error_page_is_refused_with_words(node: Node, server: FileServer) -> None:
    server.routes["/m.gguf"] = Served(b"<html>please log in</html>")
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed, match=r"m.gguf gave is refused: it is not a GGUF file: it starts with b'<htm'"):
        node.pull("m")
    assert (node.blobs(), node.partials()) == ([], [])


def test_a_page_instead_of_a_further_file_is_refused(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    server.routes["/tokenizer.json"] = Served(b"\n<!DOCTYPE html><title>Log in</title>")
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    with (node.home / "models" / "m.toml").open("a") as file:
        file.write(f'\n[[files]]\nfile = "tokenizer.json"\nsource = "{server.url}/tokenizer.json"\n')
    with pytest.raises(DownloadFailed, match=r"tokenizer.json gave is refused: it is a web page"):
        node.pull("m")
    assert node.blobs() == [], "no part of a model without the others"
    server.routes["/tokenizer.json"] = Served(b"{}")
    asked = len(server.gets("/m.gguf"))
    node.pull("m")
    assert len(server.gets("/m.gguf")) == asked, "what was whole is not fetched again"
    assert len(node.blobs()) == 2


@pytest.mark.parametrize(
    ("code", "words"),
    [(401, "wants credentials.*HF_TOKEN"), (403, "wants credentials"), (404, "is not there"), (410, "is not there")],
)
def test_what_cannot_help_to_repeat_is_asked_once(node: Node, server: FileServer, code: int, words: str) -> None:
    server.routes["/m.gguf"] = Status(code)
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed, match=words):
        node.pull("m")
    assert len(server.gets("/m.gguf")) <= 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, code: int
) -> None:
    server.faults.extend([Status(code), Status(code)])
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    assert node.blobs() == [sha(model_bytes)]


def fetch(tmp_path: Path, located: Located, slept: list[float], watcher: Watcher, patience: Patience = SOON) -> bytes:
    directory = tmp_path / "store" / "partial"
    directory.mkdir(parents=True, exist_ok=True)
    partial = Partial(directory, "key")
    with web.client() as client, partial.held("it"):
        Fetch(client, located, partial, State(model="m", source="s", file="f"), watcher, patience, slept.append).run()
    return partial.path.read_bytes()


def test_retry_after_is_obeyed(tmp_path: Path, server: FileServer, served: Served, model_bytes: bytes) -> None:
    server.faults.extend([Status(429, {"retry-after": "7"}), Status(503, {"retry-after": "86400"})])
    slept: list[float] = []
    located = Located(f"{server.url}/m.gguf", "m.gguf", "it", "it")
    assert fetch(tmp_path, located, slept, Watcher()) == model_bytes
    assert slept == [7.0, 120.0], "and bounded"


def test_pauses_grow_while_nothing_comes(tmp_path: Path, server: FileServer, served: Served) -> None:
    server.choose = lambda: Status(500)
    slept: list[float] = []
    located = Located(f"{server.url}/m.gguf", "m.gguf", "it", "it")
    with pytest.raises(DownloadFailed):
        fetch(tmp_path, located, slept, Watcher(), Patience(tries=6, pause_s=1.0, longest_pause_s=4.0))
    assert len(slept) == 5
    assert all(0.75 * want <= pause <= 1.25 * want for pause, want in zip(slept, [1, 2, 4, 4, 4], strict=True))


def test_a_server_that_is_gone_is_named(node: Node) -> None:
    with FileServer() as gone:
        url = gone.url
    node.know("m", f"{url}/m.gguf")
    with pytest.raises(DownloadFailed, match=r"127.0.0.1 cannot be reached: .*, 4 times in a row$"):
        node.pull("m")


def test_redirects_are_followed_and_bounded(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    server.routes["/a.gguf"] = Status(302, {"location": "/b"})
    server.routes["/b"] = Status(307, {"location": f"{server.url}/m.gguf"})
    server.routes["/round.gguf"] = Status(302, {"location": "/round.gguf"})
    server.faults.append(Cut(1_000_000))
    node.know("a", f"{server.url}/a.gguf", sha256=sha(model_bytes))
    node.pull("a")
    assert node.blobs() == [sha(model_bytes)]
    node.know("round", f"{server.url}/round.gguf")
    with pytest.raises(DownloadFailed, match="from one address to the next"):
        node.pull("round")


def test_credentials_stay_with_their_origin(
    tmp_path: Path, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    with FileServer() as door:
        door.routes["/here"] = Status(302, {"location": "/again"})
        door.routes["/again"] = Status(302, {"location": f"{server.url}/m.gguf"})
        located = Located(f"{door.url}/here", "m.gguf", "it", "it", {"authorization": "Bearer secret"})
        assert fetch(tmp_path, located, [], Watcher()) == model_bytes
        assert [asked.headers.get("authorization") for asked in door.asked] == ["Bearer secret"] * 2
    assert [asked.headers.get("authorization") for asked in server.asked] == [None]


def test_user_and_password_of_an_address_are_used_and_shown_nowhere(
    node: Node, server: FileServer, served: Served
) -> None:
    address = server.url.replace("http://", "http://robot:hunter2@")
    with FileServer() as other:
        server.routes["/login.gguf"] = Status(302, {"location": f"{other.url}/m.gguf"})
        other.routes["/m.gguf"] = served
        node.pull(f"{address}/login.gguf", name="m")
        assert "authorization" in server.asked[0].headers
        assert all("authorization" not in asked.headers for asked in other.asked)
    server.faults.extend([Status(404)])
    server.routes["/lost.gguf"] = Status(404)
    with pytest.raises(DownloadFailed) as caught:
        node.pull(f"{address}/lost.gguf?signature=abc")
    kept = [path.read_bytes() for path in node.home.rglob("*") if path.is_file() and path.suffix != ".part"]
    said = [caught.value.message, *node.watcher.notes_said]
    assert not [text for text in said if "hunter2" in text or "abc" in text]
    assert not [data for data in kept if b"hunter2" in data]


def test_a_signed_address_is_kept_for_its_user_alone_and_shown_to_nobody(
    node: Node, server: FileServer, served: Served
) -> None:
    signed = f"{server.url}/m.gguf?signature=abc"
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 3])
    with pytest.raises(DownloadFailed):
        node.pull(signed, Patience(tries=3, pause_s=0.001), name="m")
    unfinished = {path.stat().st_mode & 0o777 for path in holders(node.home, b"abc")}
    node.pull(signed, name="m")
    done = holders(node.home, b"abc")
    assert done and {path.stat().st_mode & 0o777 for path in done} == unfinished == {0o600}
    registry = Registry.at(node.home)
    (node.store / "names" / "m.json").unlink()
    for attempt in (
        lambda: node.pull(f"{server.url}/m.gguf?signature=def", name="m"),
        lambda: registry.resolve("m"),
        lambda: registry.resolve(signed),
    ):
        with pytest.raises(ModelUnusable) as caught:
            attempt()
        assert "/m.gguf" in caught.value.message and "abc" not in caught.value.message


def holders(home: Path, secret: bytes) -> list[Path]:
    """Files with these bytes in them, weights aside."""
    files = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    return [path for path in files if secret in path.read_bytes()]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-linked-etag": '"{sha}"'},
        {"x-checksum-sha256": "{sha}"},
        {"repr-digest": "sha-256=:{base64}:"},
    ],
)
def test_a_sum_that_the_server_states_counts(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, headers: dict[str, str]
) -> None:
    import base64

    text = base64.b64encode(bytes.fromhex(sha(model_bytes))).decode()
    served.stated = {name: form.format(sha=sha(model_bytes), base64=text) for name, form in headers.items()}
    server.choose = lambda: Damage(2_000_000)
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed, match="is refused"):
        node.pull("m")
    server.choose = lambda: None
    assert not node.pull("m").trusted


def test_two_processes_do_not_fetch_the_same(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    from edge.errors import StoreBusy

    node.know("m", f"{server.url}/m.gguf")
    node.inventory._store.prepare()
    with (
        node.inventory._store.name_lock("m"),
        pytest.raises(StoreBusy, match="another process is at work on model m"),
    ):
        node.pull("m")
    node.pull("m")


def test_a_state_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    partial = Partial(tmp_path, "key")
    partial.save(State(model="m", source="s", file="f", size_bytes=7))
    assert partial.state == State(model="m", source="s", file="f", size_bytes=7, boot=partial.state.boot)
    os.truncate(tmp_path / "key.json", 5)
    assert partial.state is None


def test_an_address_that_allows_get_alone_works(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = server.answer
    monkeypatch.setattr(server, "answer", lambda asked: Status(403) if asked.method == "HEAD" else whole(asked))
    node.pull(f"{server.url}/m.gguf", name="m")
    assert node.blobs() == [sha(model_bytes)]


def test_certificates_are_checked(
    node: Node, served: Served, model_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FileServer(tls=context) as server, FileServer() as plain:
        server.routes["/m.gguf"] = served
        server.routes["/down.gguf"] = Status(302, {"location": f"{plain.url}/m.gguf"})
        plain.routes["/m.gguf"] = served
        node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
        with pytest.raises(DownloadFailed, match=r"certificate of 127.0.0.1 is not trusted here .*SSL_CERT_FILE"):
            node.pull("m")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        node.pull("m")
        assert node.blobs() == [sha(model_bytes)]
        node.know("down", f"{server.url}/down.gguf")
        with pytest.raises(DownloadFailed, match="sends on from https to plain http"):
            node.pull("down")
        assert not plain.asked


def test_a_proxy_that_wants_credentials_is_asked_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer() as proxy:
        proxy.routes["http://models.example/m.gguf"] = Status(407)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        node.know("m", "http://models.example/m.gguf")
        with pytest.raises(DownloadFailed, match="user and password of the proxy"):
            node.pull("m")
        assert len(proxy.gets("http://models.example/m.gguf")) == 1
