"""libllama must cut text as the tokenizer did that the model was trained with, and give every text back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.engine.llama.library import Library
from edge.engine.llama.model import Model, Vocabulary
from models.recipe.dialogues import dialogue
from models.recipe.render import MARKERS, SPECIAL, Renderer
from models.recipe.requests import Speaker

MODELS = Path(__file__).resolve().parents[2] / "models"
ODDITIES = (
    *(
        "",
        " ",
        "  ",
        "\n",
        "\r\n\r\n",
        " \n \n",
        "\t\tx",
        "a\n\n b\t  x",
        "''s 'S",
        "it's we'LL I'M",
        "don't   stop\u2029",
    ),
    *("12345", "3.14, -7 and 1e9", "°C ½ ² Ⅷ ﬀ", "ünïcode Straße naïve", "中文 日本語 한국어", "नमस्ते ١٢٣ שלום"),
    *("🙂🙂 👨‍👩‍👧 🏳️‍🌈", "e\u0301 \u200b\u00a0\u2003", "\ufeffbom", "a" * 300, "Ω≈ç√∫", "\x00\x01\x7f"),
    *("<|end", "|>", "<tool_call", '{"device":"pump 3"}', "<tool_call>{}</tool_call>", "x<|user|>y"),
)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    model = Model(Library(), MODELS / "builtin" / "edge-builtin-q4_0.gguf", gpu_layers=0)
    yield model.vocabulary
    model.close()


def texts(count: int) -> list[str]:
    said, renderer = Speaker(random.Random(77), evaluation=False), Renderer()
    made = (dialogue(said, long_share=0.01) for _ in range(count))
    return [renderer.text(d.messages, d.tools) for d in made]


def test_libllama_cuts_text_as_the_tokenizer_does(vocabulary: Vocabulary) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="comes with the extra `train`")
    reference = tokenizers.Tokenizer.from_file(str(MODELS / "recipe" / "tokenizer.json"))
    for text in (*texts(1000), *ODDITIES):
        assert vocabulary.tokenize(text, add_special=False, parse_special=True) == reference.encode(text).ids, text


def test_control_tokens_are_single_and_at_their_places(vocabulary: Vocabulary) -> None:
    for number, text in enumerate((*SPECIAL, *MARKERS)):
        assert vocabulary.tokenize(text, add_special=False, parse_special=True) == [number]


def test_control_tokens_in_a_text_are_text_unless_asked_for(vocabulary: Vocabulary) -> None:
    for text in SPECIAL:
        assert len(vocabulary.tokenize(text, add_special=False, parse_special=False)) > 1


def test_markers_of_calls_are_seen_and_control_tokens_are_not(vocabulary: Vocabulary) -> None:
    first = len(SPECIAL)
    assert [vocabulary.piece(first + i).decode() for i in range(len(MARKERS))] == list(MARKERS)
    assert all(vocabulary.piece(i) == b"" for i in range(first))


def test_the_prompt_begins_once_and_the_answer_ends(vocabulary: Vocabulary) -> None:
    begin, end = (SPECIAL.index(t) for t in ("<|begin|>", "<|end|>"))
    assert vocabulary.tokenize("x", add_special=True, parse_special=True)[0] == begin
    assert end in vocabulary.end_tokens
    assert vocabulary.adds_bos


def test_each_digit_stands_alone(vocabulary: Vocabulary) -> None:
    tokens = vocabulary.tokenize("1234567890", add_special=False, parse_special=True)
    assert [vocabulary.piece(t) for t in tokens] == [str(d).encode() for d in (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)]


@pytest.mark.parametrize("text", ODDITIES)
def test_odd_text_comes_back_whole(vocabulary: Vocabulary, text: str) -> None:
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(vocabulary.piece(t) for t in tokens).decode() == text


@given(text=st.text(max_size=200))
def test_any_text_comes_back_whole(vocabulary: Vocabulary, text: str) -> None:
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(vocabulary.piece(t) for t in tokens).decode() == text
