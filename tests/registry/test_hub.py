"""The real huggingface_hub client against a look-alike of the hub, as HF_ENDPOINT would have it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from bench.file_server import Cut, Damage, FileServer, Served, Status
from edge.errors import DownloadFailed
from edge.registry import hub as hub_module
from edge.registry.fetch import Patience
from edge.registry.resolve import Registry, ResolvedTensors
from edge.registry.source import Hub
from tests.conftest import RunEdge
from tests.registry.conftest import Node, sha
from tests.registry.hub import COMMIT, HubLookalike

REPO = "maker/Tiny-GGUF"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, model_bytes: bytes) -> Iterator[HubLookalike]:
    with HubLookalike() as running:
        running.files[REPO] = {
            "README.md": b"# Tiny",
            "tiny-q4_k_m.gguf": model_bytes,
            "tiny-q8_0.gguf": model_bytes + bytes(32),
            "tiny-q4_k_s.gguf": b"another",
            "mmproj-tiny-q8_0.gguf": b"projector",
        }
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
        yield running


def test_a_quantisation_finds_its_file_and_its_sum(hub: HubLookalike, model_bytes: bytes) -> None:
    located = hub_module.locate(Hub(REPO, "main", "Q4_K_M"))
    assert located.file == "tiny-q4_k_m.gguf"
    assert located.sha256 == sha(model_bytes)
    assert located.size_bytes == len(model_bytes)
    assert located.url == f"{hub.url}/{REPO}/resolve/{COMMIT}/tiny-q4_k_m.gguf", "pinned to the commit"


def test_a_file_in_git_has_a_size_and_no_sum(hub: HubLookalike) -> None:
    located = hub_module.locate(Hub(REPO, "main", "README.md"))
    assert (located.file, located.size_bytes, located.sha256) == ("README.md", 6, None)


def test_pull_by_quantisation(node: Node, hub: HubLookalike, model_bytes: bytes) -> None:
    pulled = node.pull(f"hf:{REPO}:q4_k_m")
    assert pulled.record.manifest.name == "tiny-q4_k_m"
    assert node.blobs() == [sha(model_bytes)]
    assert not pulled.trusted, "the hub states the sum"
    assert node.pull("tiny-q4_k_m").already


def test_an_interrupted_pull_goes_on_and_asks_the_hub_for_a_new_address(
    node: Node, hub: HubLookalike, model_bytes: bytes
) -> None:
    hub.cdn.faults.extend([Cut(1_000_000), Status(403)])  # the signed address has run out
    with pytest.raises(DownloadFailed):
        node.pull(f"hf:{REPO}:Q4_K_M")
    node.pull(f"hf:{REPO}:Q4_K_M")
    assert hub.cdn.asked[-1].headers["range"] == "bytes=1000000-"
    assert node.blobs() == [sha(model_bytes)]


def test_damage_is_found_by_the_sum_of_the_hub(node: Node, hub: HubLookalike) -> None:
    hub.cdn.choose = lambda: Damage(2_000_000)
    with pytest.raises(DownloadFailed, match="is refused"):
        node.pull(f"hf:{REPO}:Q4_K_M")
    assert node.blobs() == []


def test_the_token_goes_to_the_hub_alone(
    node: Node, hub: HubLookalike, monkeypatch: pytest.MonkeyPatch, model_bytes: bytes
) -> None:
    hub.gated.add(REPO)
    hub.token = "hf_secret"
    with pytest.raises(DownloadFailed, match=r"asks for terms to be accepted: .*HF_TOKEN"):
        node.pull(f"hf:{REPO}:Q4_K_M")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    node.pull(f"hf:{REPO}:Q4_K_M")
    assert node.blobs() == [sha(model_bytes)]
    assert all("authorization" not in asked.headers for asked in hub.cdn.asked)
    kept = [path.read_bytes() for path in node.home.rglob("*") if path.is_file()]
    assert not [data for data in kept if b"hf_secret" in data or b"X-Amz-Signature" in data]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf:maker/Nothing:Q4_K_M", "has no model maker/Nothing, or it is private: check the name, or set HF_TOKEN"),
        (f"hf:{REPO}:Q2_K", "has no file for 'Q2_K'; it has tiny-q4_k_m.gguf, tiny-q4_k_s.gguf, tiny-q8_0.gguf"),
        (f"hf:{REPO}", "has several files for a .gguf file: name one of tiny-q4_k_m.gguf"),
        (f"hf:{REPO}:no.gguf", "has no file 'no.gguf'; a quantisation such as Q4_K_M"),
        (f"hf:{REPO}@v9:tiny-q8_0.gguf", "has no revision 'v9'"),
    ],
)
def test_what_the_hub_has_not_is_said(node: Node, hub: HubLookalike, source: str, words: str) -> None:
    with pytest.raises(DownloadFailed, match=re.escape(words)):
        node.pull(source)


def test_a_hub_out_of_reach_is_named(node: Node, hub: HubLookalike, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubLookalike() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(DownloadFailed, match=r"127.0.0.1 cannot be reached .*HTTPS_PROXY and HF_ENDPOINT"):
        node.pull(f"hf:{REPO}:tiny-q8_0.gguf")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Welcome to the hotel</title>", b"[]", b'{"siblings": 3}'])
@pytest.mark.parametrize("wanted", ["Q4_K_M", "tiny-q8_0.gguf"])
def test_a_login_page_on_the_way_is_told_from_a_hub(
    node: Node, monkeypatch: pytest.MonkeyPatch, page: bytes, wanted: str
) -> None:
    with FileServer() as portal:
        monkeypatch.setattr(portal, "answer", lambda asked: Served(page))
        monkeypatch.setenv("HF_ENDPOINT", portal.url)
        with pytest.raises(DownloadFailed, match=r"does not answer as a hub does|is not a GGUF file"):
            node.pull(f"hf:{REPO}:{wanted}")
    assert node.partials() == []


def test_a_hub_that_accepts_and_says_nothing_is_not_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DownloadFailed, match=r"127.0.0.1 cannot be reached"):
            node.pull(f"hf:{REPO}:Q4_K_M")


def test_the_hub_hears_nothing_but_what_it_is_asked(node: Node, hub: HubLookalike) -> None:
    node.pull(f"hf:{REPO}:Q4_K_M")
    assert {asked.method for asked in hub.asked} == {"GET", "HEAD"}
    paths = {asked.path.partition("?")[0] for asked in hub.asked}
    assert all(path.startswith((f"/api/models/{REPO}/revision/", f"/{REPO}/resolve/")) for path in paths), paths


def test_a_model_of_several_files(node: Node, hub: HubLookalike, model_bytes: bytes) -> None:
    hub.files["maker/Embed"] = {"onnx/model.onnx": b"ONNX" * 1000, "tokenizer.json": b"{}"}
    node.know("embed", "hf:maker/Embed:onnx/model.onnx", task="detection")
    with (node.home / "models" / "embed.toml").open("a") as file:
        file.write('\n[[files]]\nfile = "tokenizer.json"\nsource = "hf:maker/Embed:tokenizer.json"\n')
    pulled = node.pull("embed")
    assert [stored.file for stored in pulled.record.files] == ["model.onnx", "tokenizer.json"]
    assert [stored.file for stored in pulled.trusted] == ["tokenizer.json"], "git files have no sha256 there"
    assert node.state("embed") == "here"


def test_the_sum_of_the_first_fetch_is_held_to(node: Node, hub: HubLookalike, model_bytes: bytes) -> None:
    hub.files["maker/Embed"] = {"model.onnx": b"ONNX", "tokenizer.json": b"{}"}
    node.know("embed", "hf:maker/Embed:model.onnx", task="detection")
    with (node.home / "models" / "embed.toml").open("a") as file:
        file.write('\n[[files]]\nfile = "tokenizer.json"\nsource = "hf:maker/Embed:tokenizer.json"\n')
    node.pull("embed")
    (node.store / "blobs" / sha(b"{}")).unlink()
    assert node.state("embed") == "incomplete"
    hub.files["maker/Embed"]["tokenizer.json"] = b'{"changed": 1}'
    with pytest.raises(DownloadFailed, match=r"sum is that of the first fetch: .*edge models remove embed"):
        node.pull("embed", Patience(tries=2, pause_s=0.001))
    node.inventory.remove("embed")
    node.pull("embed")
    assert node.state("embed") == "here"


def test_the_command_line_pulls_from_the_hub(
    run_edge: RunEdge, node: Node, hub: HubLookalike, model_bytes: bytes
) -> None:
    done = run_edge("models", "pull", f"hf:{REPO}:Q4_K_M", "--name", "mine", HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "mine is here, 3.0 MB; try it: edge serve --model mine\n"
    assert node.blobs() == [sha(model_bytes)]


def test_nothing_is_asked_once_a_model_is_here(
    run_edge: RunEdge, node: Node, hub: HubLookalike, model_bytes: bytes
) -> None:
    assert run_edge("models", "pull", f"hf:{REPO}:Q4_K_M", HF_ENDPOINT=hub.url).returncode == 0
    hub.asked.clear()
    assert "is here already" in run_edge("models", "pull", "tiny-q4_k_m", HF_ENDPOINT=hub.url).stdout
    found = node.inventory._registry.resolve("tiny-q4_k_m")
    assert found.path.read_bytes() == model_bytes
    assert not hub.asked


def test_a_fetched_encoder_is_found_with_its_tokenizer(node: Node, hub: HubLookalike) -> None:
    hub.files["maker/Oak"] = {"model.onnx": b"ONNX", "tokenizer.json": b"{}"}
    node.know("oak", "hf:maker/Oak:model.onnx", task="embedding")
    with (node.home / "models" / "oak.toml").open("a") as file:
        file.write('\n[encoder]\npooling = "mean"\n')
        file.write('\n[[files]]\nfile = "tokenizer.json"\nsource = "hf:maker/Oak:tokenizer.json"\n')
    node.pull("oak")
    found = Registry.at(node.home).find("oak")
    assert isinstance(found, ResolvedTensors)
    assert found.path.read_bytes() == b"ONNX" and found.files["tokenizer.json"].read_bytes() == b"{}"
