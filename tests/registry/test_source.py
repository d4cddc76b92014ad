"""How sources are written, and what of an address may be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.registry.source import (
    Builtin,
    Hub,
    LocalFile,
    NoSuchQuant,
    Web,
    choose_quant,
    file_name,
    parse_source,
    shown_url,
    without_credentials,
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("builtin", Builtin()),
        ("file:/media/stick/a.gguf", LocalFile(Path("/media/stick/a.gguf"))),
        ("file:///media/a%20b.gguf", LocalFile(Path("/media/a b.gguf"))),
        ("https://example.com/a.gguf?x=1", Web("https://example.com/a.gguf?x=1")),
        ("hf:Qwen/Qwen3-4B-GGUF:Q4_K_M", Hub("Qwen/Qwen3-4B-GGUF", "main", "Q4_K_M")),
        ("hf:a/b@refs-1:sub/model.onnx", Hub("a/b", "refs-1", "sub/model.onnx")),
        ("hf:a/b", Hub("a/b", "main", "")),
    ],
)
def test_sources_are_read(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model",
        "ftp://a/b",
        "file:relative",
        "file:/a%00b",
        "hf:",
        "hf:a",
        "hf:a/b:",
        "https://",
        "https://host/",
        "https://host/%2F",
    ],
)
def test_what_is_none_is_refused_with_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no source|whole path|no file of the hub|names no file"):
        parse_source(text)


FILES = [
    "README.md",
    "Model-Q4_0.gguf",
    "Model-Q4_0_4_4.gguf",
    "Model-Q4_K_M.gguf",
    "Model-Q4_K_S.gguf",
    "Model-IQ4_XS.gguf",
    "mmproj-Model-F16.gguf",
    "sub/model.f16.gguf",
    "Model-Q8_0-00001-of-00002.gguf",
    "Model-Q8_0-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        ("Q4_K_M", "Model-Q4_K_M.gguf"),
        ("q4_k_m", "Model-Q4_K_M.gguf"),
        ("Q4_0", "Model-Q4_0.gguf"),
        ("F16", "sub/model.f16.gguf"),
        ("IQ4_XS", "Model-IQ4_XS.gguf"),
    ],
)
def test_a_quantisation_names_one_file(wanted: str, file: str) -> None:
    assert choose_quant(FILES, wanted) == file


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("Q4_K", "no file for 'Q4_K'; it has Model-Q4_0.gguf"),
        ("Q4_XS", "no file for"),
        ("", "several files"),
        ("Q8_0", "only in several parts"),
    ],
)
def test_what_names_none_or_several_lists_them(wanted: str, words: str) -> None:
    with pytest.raises(NoSuchQuant, match=words):
        choose_quant(FILES, wanted)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a/b.gguf?x#y", "b.gguf"),
        ("https://h/..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("https://h/a%0Ab%1B.gguf", "ab.gguf"),
    ],
)
def test_a_name_from_an_address_is_a_name(url: str, name: str) -> None:
    assert file_name(Web(url)) == name


def test_secrets_of_an_address_are_not_shown() -> None:
    address = "https://robot:hunter2@example.com:8443/a/b.gguf?X-Signature=abc#d"
    assert shown_url(address) == "https://example.com:8443/a/b.gguf"
    assert without_credentials(address) == "https://example.com:8443/a/b.gguf?X-Signature=abc#d"
    assert without_credentials("hf:a/b:c.gguf") == "hf:a/b:c.gguf"
