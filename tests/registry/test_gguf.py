"""The GGUF header parser: right on real files, and never anything but ModelUnusable on broken ones."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ModelUnusable
from edge.registry.gguf import read_header
from tests.registry.conftest import gguf_bytes

PARAMETERS = 300 * 32 + 8 * 64 + 32


def diagnosis(path: Path) -> str:
    with pytest.raises(ModelUnusable) as caught:
        read_header(path)
    return caught.value.message


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


def test_reads_the_facts_of_a_real_file(tiny_gguf: Path) -> None:
    header = read_header(tiny_gguf)
    assert (header.architecture, header.name, header.version) == ("llama", "Tiny", 3)
    assert (header.parameters, header.vocabulary, header.context_tokens) == (PARAMETERS, 300, 128)
    assert header.chat_template == "{{ messages[0].content }}"
    assert header.tensor_bytes == {"F16": 300 * 32 * 2, "Q4_0": 8 * 64 // 32 * 18, "F32": 32 * 4}
    assert header.quantization == "F16"
    assert header.needed_bytes <= header.file_bytes == tiny_gguf.stat().st_size


def test_names_a_missing_file(tmp_path: Path) -> None:
    assert diagnosis(tmp_path / "no.gguf") == f"there is no file {tmp_path / 'no.gguf'}; check the path"


def test_names_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in diagnosis(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "is no regular file" in diagnosis(tmp_path / "pipe.gguf")


def test_a_name_is_a_line_that_a_terminal_may_be_shown(tmp_path: Path) -> None:
    gguf_bytes(tmp_path / "m.gguf", seed=1, name="Nice\x1b[2J\nModel\x9b" + "x" * 10_000)
    header = read_header(tmp_path / "m.gguf")
    assert header.name.startswith("Nice[2JModelxxx") and header.name.isprintable() and len(header.name) <= 200


def test_says_how_a_foreign_file_starts(tmp_path: Path) -> None:
    assert "it starts with b'<htm'" in diagnosis(written(tmp_path, b"<html>not found</html>"))


def test_says_that_an_empty_file_is_empty(tmp_path: Path) -> None:
    assert "is empty" in diagnosis(written(tmp_path, b""))


def test_says_by_how_much_a_download_was_cut_short(tmp_path: Path, tiny_gguf: Path) -> None:
    data, needed = tiny_gguf.read_bytes(), read_header(tiny_gguf).needed_bytes
    message = diagnosis(written(tmp_path, data[: needed - 40]))
    assert f"is {needed - 40} bytes, its tensor table needs {needed}" in message
    assert "download it again" in message


def test_tells_a_big_endian_file(tmp_path: Path) -> None:
    assert "big-endian" in diagnosis(written(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 1, 1)))


@pytest.mark.parametrize("version", [0x00010000 >> 16, 4, 99])
def test_refuses_other_versions(tmp_path: Path, version: int) -> None:
    assert f"GGUF version {version}" in diagnosis(written(tmp_path, b"GGUF" + struct.pack("<IQQ", version, 1, 1)))


def test_refuses_absurd_counts(tmp_path: Path) -> None:
    assert "it claims" in diagnosis(written(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1)))


def test_refuses_a_string_longer_than_the_file(tmp_path: Path) -> None:
    key = b"general.name"
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 1 << 62)
    assert "are left; download it again" in diagnosis(written(tmp_path, data))


def test_refuses_a_file_without_weights(tmp_path: Path) -> None:
    assert "holds no weights" in diagnosis(written(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 0)))


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_always_refused(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    data, needed = tiny_gguf.read_bytes(), read_header(tiny_gguf).needed_bytes
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(data[: int(needed * cut)])
    diagnosis(path)


@given(spots=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_corrupt_header_is_refused_or_read(
    tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory, spots: list[tuple[float, int]]
) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    for place, value in spots:
        data[int(place * len(data) / 2)] = value  # the first half is header
    path = tmp_path_factory.mktemp("corrupt") / "corrupt.gguf"
    path.write_bytes(data)
    try:
        assert read_header(path).parameters > 0
    except ModelUnusable as error:
        assert error.message.count("\n") == 0
