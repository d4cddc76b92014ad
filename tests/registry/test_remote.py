"""Looking into files that are elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.file_server import Cut, FileServer, Served, Status
from edge.errors import DownloadFailed, ModelUnusable
from edge.registry.gguf import read_header
from edge.registry.remote import RemoteFile, sparse_copy
from edge.registry.window import HeaderCutShort
from tests.registry.conftest import SOON
from tests.registry.hub import HubLookalike


def test_parts_are_read(server: FileServer, served: Served, model_bytes: bytes) -> None:
    with RemoteFile(f"{server.url}/m.gguf", SOON) as remote:
        assert (remote.name, remote.size_bytes) == ("m.gguf", len(model_bytes))
        assert remote.read(0, 100) == model_bytes[:100]
        assert remote.read(1_234_567, 70_000) == model_bytes[1_234_567:1_304_567]
        assert remote.read(len(model_bytes) - 5, 100) == model_bytes[-5:]
        assert remote.read(len(model_bytes) + 5, 100) == b""
        with pytest.raises(ValueError, match="bytes at"):
            remote.read(0, 1 << 40)


def test_reads_are_tried_again(server: FileServer, served: Served, model_bytes: bytes) -> None:
    with RemoteFile(f"{server.url}/m.gguf", SOON) as remote:
        server.faults.extend([Status(503), Cut(10)])
        assert remote.read(500, 1000) == model_bytes[500:1500]


def test_a_server_without_ranges_is_good_for_the_beginning(
    server: FileServer, served: Served, model_bytes: bytes
) -> None:
    served.ranges = False
    with RemoteFile(f"{server.url}/m.gguf", SOON) as remote:
        assert remote.size_bytes == len(model_bytes)
        assert remote.read(0, 100) == model_bytes[:100]
        with pytest.raises(DownloadFailed, match="is given only as a whole"):
            remote.read(100, 100)


def test_a_sparse_copy_has_the_header_and_the_size(
    server: FileServer, served: Served, model_bytes: bytes, tmp_path: Path
) -> None:
    weights = bytes(200 << 20)  # much more than is fetched
    server.routes["/big.gguf"] = Served(model_bytes + weights)
    path = sparse_copy(f"{server.url}/big.gguf", tmp_path / "look", SOON)
    assert path == tmp_path / "look" / "big.gguf"
    status = path.stat()
    assert status.st_size == len(model_bytes) + len(weights)
    assert status.st_blocks * 512 < 8 << 20
    assert read_header(path).parameters == 1_500_000
    asked = [request.headers["range"] for request in server.gets("/big.gguf")]
    assert asked[0] == "bytes=0-0" and len(asked) == 2


def test_a_long_header_is_fetched_in_growing_pieces(server: FileServer, tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "llama")
    writer.add_context_length(128)
    writer.add_token_list([f"a rather long token number {i}" for i in range(200_000)])
    writer.add_tensor("token_embd.weight", np.ones((300, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    server.routes["/long.gguf"] = Served((tmp_path / "long.gguf").read_bytes() + bytes(50 << 20))
    path = sparse_copy(f"{server.url}/long.gguf", tmp_path / "look", SOON)
    assert read_header(path).vocabulary == 200_000
    lengths = [request.headers["range"] for request in server.gets("/long.gguf")][1:]
    assert lengths == ["bytes=0-2097151", "bytes=2097152-4194303", "bytes=4194304-8388607"]


def test_what_is_no_model_leaves_no_copy(server: FileServer, tmp_path: Path) -> None:
    server.routes["/page.gguf"] = Served(b"<html>" + bytes(1000))
    with pytest.raises(ModelUnusable, match=rf"{server.url}/page.gguf is not a GGUF file"):
        sparse_copy(f"{server.url}/page.gguf", tmp_path / "look", SOON)
    assert not list((tmp_path / "look").iterdir())


def test_a_header_that_goes_on_behind_what_is_here_asks_for_more(model_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(model_bytes[:2000])
    with pytest.raises(HeaderCutShort):
        read_header(tmp_path / "m.gguf", len(model_bytes))
    with pytest.raises(ModelUnusable):
        read_header(tmp_path / "m.gguf")


def test_the_hub_is_looked_into(monkeypatch: pytest.MonkeyPatch, model_bytes: bytes, tmp_path: Path) -> None:
    with HubLookalike() as hub:
        hub.files["a/b"] = {"x-q4_0.gguf": model_bytes}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        path = sparse_copy("hf:a/b:Q4_0", tmp_path, SOON)
    assert path.name == "x-q4_0.gguf"
    assert path.stat().st_size == len(model_bytes)


@pytest.mark.parametrize("source", ["file:/x.gguf", "builtin", "nonsense"])
def test_what_is_not_elsewhere_is_refused(source: str) -> None:
    with pytest.raises(ModelUnusable):
        RemoteFile(source)
