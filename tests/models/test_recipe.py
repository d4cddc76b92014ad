"""The text that the built-in model is made from: the same for the same seed, right, and apart from its evaluation."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from models.recipe import requests, wordings
from models.recipe.catalogue import BY_NAME, CATALOGUE, DISTRACTORS
from models.recipe.dialogues import Dialogue, dialogue, missing_tool, tool_dialogue
from models.recipe.prose import ANSWERS, NO_TOOL, OUT_OF_SCOPE
from models.recipe.render import Renderer
from models.recipe.requests import Ask, Speaker, ask
from models.recipe.world import held_out, in_words

TOOLS_FILE = Path(__file__).resolve().parents[2] / "models" / "builtin" / "tools.json"
SENTENCES = {name: part for name, part in vars(wordings).items() if isinstance(part, wordings.Wordings)}
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def speaker(seed: int, *, evaluation: bool = False) -> Speaker:
    return Speaker(random.Random(seed), evaluation=evaluation)


def dialogues(seed: int, count: int, *, evaluation: bool = False, long_share: float = 0.02) -> list[Dialogue]:
    said = speaker(seed, evaluation=evaluation)
    return [dialogue(said, long_share=long_share) for _ in range(count)]


def asked(count: int, *, evaluation: bool) -> Iterator[Ask]:
    said = speaker(5, evaluation=evaluation)
    return (ask(said) for _ in range(count))


def combinations(request: Ask) -> Iterator[tuple[object, ...]]:
    """The keys by which the split is made, for each call of a request."""
    for name, a in request.calls:
        match name:
            case "set_value":
                yield "set", a["device"], a["quantity"]
            case "read_value":
                yield "read", a["device"], a["quantity"]
            case "set_alarm":
                yield "alarm", a["device"], a["quantity"]
            case "start_device" | "stop_device":
                yield name, a["device"]
            case "acknowledge_alarm":
                yield "ack", a["alarm_id"]
            case "convert_unit":
                yield "convert", (a["from_unit"], a["to_unit"]), a["value"]
            case "schedule":
                yield "schedule", a["action"], a["device"]


def bare(sentence: str) -> str:
    """A wording without what politeness and punctuation add to it."""
    words = re.sub(r"[^\w{} ]", " ", sentence.lower()).split()
    return " ".join(word for word in words if word not in ("please", "now"))


def test_the_same_seed_makes_the_same_text() -> None:
    renderer = Renderer()
    first, second = ([renderer.text(d.messages, d.tools) for d in dialogues(3, 200)] for _ in range(2))
    assert first == second
    assert first != [renderer.text(d.messages, d.tools) for d in dialogues(4, 200)]


@pytest.fixture(scope="module")
def trained() -> set[str]:
    """Every wording of the training with everything that the training puts before and after it."""
    openers = {*wordings.OPENERS, *requests.QUESTION_OPENERS}
    sentences = [sentence for part in SENTENCES.values() for sentence in part.train]
    return {bare(a + sentence + z) for sentence in sentences for a in openers for z in set(wordings.CLOSERS)}


@pytest.mark.parametrize("name", SENTENCES)
def test_no_wording_of_the_evaluation_is_trained(name: str, trained: set[str]) -> None:
    part = SENTENCES[name]
    assert part.train and part.held_out
    assert not trained & {bare(sentence) for sentence in part.held_out}


def test_no_question_of_the_evaluation_is_trained() -> None:
    trained = {bare(question) for entry in ANSWERS for question in entry.questions[:-1]}
    assert not trained & {bare(entry.questions[-1]) for entry in ANSWERS}
    assert len({bare(question) for question in OUT_OF_SCOPE}) == len(OUT_OF_SCOPE)


@pytest.mark.parametrize("evaluation", [False, True])
def test_no_combination_is_on_both_sides_of_the_split(evaluation: bool) -> None:
    seen = [held_out(*key) for request in asked(2000, evaluation=evaluation) for key in combinations(request)]
    assert len(seen) > 1000
    assert set(seen) == {evaluation}


def test_a_combination_in_eight_is_held_out() -> None:
    share = sum(held_out("start_device", f"pump {n}") for n in range(4000)) / 4000
    assert 0.1 < share < 0.15


@pytest.mark.parametrize("evaluation", [False, True])
def test_calls_fit_the_tools_and_the_sentence(evaluation: bool) -> None:
    schemas = {name: Draft202012Validator(tool["function"]["parameters"]) for name, tool in BY_NAME.items()}
    for request in asked(1500, evaluation=evaluation):
        for name, arguments in request.calls:
            schemas[name].validate(arguments)
            device = str(arguments.get("device", "")).split(" ")
            assert not device[0] or device[0] in request.text.lower()
            if len(device) > 1:
                number = int(device[1])
                assert re.search(rf"\b{number}\b|{number}|{in_words(number)}", request.text.lower())


def test_every_placeholder_is_filled() -> None:
    renderer = Renderer()
    for made in dialogues(8, 1500) + dialogues(9, 500, evaluation=True):
        for message in made.messages:
            if message["role"] == "user":
                assert not PLACEHOLDER.search(message["content"]), message["content"]
        assert renderer.text(made.messages, made.tools).endswith("<|end|>")


def test_a_tool_that_is_called_was_offered() -> None:
    said = speaker(12)
    for _ in range(500):
        made = tool_dialogue(said)
        offered = {tool["function"]["name"] for tool in made.tools}
        assert {call["function"]["name"] for call in made.messages[-1]["tool_calls"]} <= offered


def test_without_the_tool_the_answer_says_so() -> None:
    said, with_tools = speaker(13), 0
    for _ in range(300):
        made = missing_tool(said)
        with_tools += bool(made.tools)
        assert made.messages[-1] == {"role": "assistant", "content": NO_TOOL}
    assert 0 < with_tools < 300


def test_distractors_are_no_tools_of_ours() -> None:
    assert not BY_NAME.keys() & {tool["function"]["name"] for tool in DISTRACTORS}


def test_the_published_tools_are_the_trained_ones() -> None:
    assert json.loads(TOOLS_FILE.read_text("utf-8")) == list(CATALOGUE)


def test_dialogues_end_with_the_right_answer() -> None:
    for made in dialogues(21, 800, long_share=0.1):
        assert made.messages[-1]["role"] == "assistant"
        assert made.messages[-1]["content"] or made.messages[-1]["tool_calls"]
        assert [m["role"] for m in made.messages].count("system") <= 1
