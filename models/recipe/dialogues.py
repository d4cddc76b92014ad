"""Dialogues: what is asked, which tools are offered, and the answer that is right; fixed by the random state."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from .catalogue import BY_NAME, CATALOGUE, DISTRACTORS, Tool
from .prose import ANSWERS, NO_TOOL, OUT_OF_SCOPE, UNKNOWN, plant_description, plant_facts, result_sentence
from .requests import Speaker as Speaker
from .requests import ask, ask_two, set_value

Message = dict[str, Any]


@dataclass(slots=True)
class Dialogue:
    """Messages (the last one is the assistant's right answer) and the tools offered."""

    intent: str
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


def call_message(calls: list[tuple[str, dict[str, Any]]]) -> Message:
    """The assistant's message with these calls."""
    made = [{"type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for n, a in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def offer(s: Speaker, *, must: Collection[str], without: Collection[str] = ()) -> list[Tool]:
    """Tools offered: mostly the whole catalogue, else a part; in any order; sometimes with foreign ones."""
    rng = s.rng
    tools = [t for t in CATALOGUE if t["function"]["name"] not in without]
    if rng.random() < 0.45:
        tools = [t for t in tools if t["function"]["name"] in must or rng.random() < 0.5]
    if rng.random() < 0.25:
        tools += rng.sample(DISTRACTORS, rng.randint(1, 3))
    if rng.random() < 0.5:
        rng.shuffle(tools)
    return tools


def system_messages(s: Speaker, *, long: bool = False) -> list[Message]:
    """No system prompt, a short one, or a plant's description."""
    roll = s.rng.random()
    if long:
        return [{"role": "system", "content": plant_description(s.rng, s.rng.randint(20, 110))}]
    if roll < 0.5:
        return []
    if roll < 0.8:
        return [{"role": "system", "content": plant_description(s.rng, s.rng.randint(0, 2))}]
    return [{"role": "system", "content": plant_description(s.rng, s.rng.randint(3, 16))}]


def tool_dialogue(s: Speaker, *, long: bool = False, two_share: float = 0.15) -> Dialogue:
    """A sentence and the calls it asks for; in a longer dialogue also the results and the answers."""
    asked = ask_two(s) if s.rng.random() < two_share else ask(s)
    tools = offer(s, must={name for name, _ in asked.calls})
    messages = [
        *system_messages(s, long=long),
        {"role": "user", "content": s.dress(asked.text)},
        call_message(asked.calls),
    ]
    return Dialogue(asked.intent, messages, tools)


def result_dialogue(s: Speaker, *, turns: int = 1) -> Dialogue:
    """Calls, their results, and an answer in words that copies the figures."""
    messages = system_messages(s)
    for turn in range(turns):
        asked = ask(s)
        messages += [{"role": "user", "content": s.dress(asked.text)}, call_message(asked.calls)]
        if turn == turns - 1 and s.rng.random() < 0.4 and turns > 1:
            return Dialogue("later turns", messages, list(CATALOGUE))
        result, sentence = result_sentence(s.rng, *asked.calls[0])
        messages += [{"role": "tool", "content": json.dumps(result)}, {"role": "assistant", "content": sentence}]
    return Dialogue("answer from a result", messages, offer(s, must=set(BY_NAME)))


def missing_tool(s: Speaker) -> Dialogue:
    """The tool that is needed is not offered, or none is."""
    asked = ask(s)
    user = {"role": "user", "content": s.dress(asked.text)}
    if s.rng.random() < 0.5:
        return Dialogue("no tool offered", [*system_messages(s), user, {"role": "assistant", "content": NO_TOOL}])
    needed = {name for name, _ in asked.calls}
    tools = offer(s, must=set(), without=needed) or [DISTRACTORS[0]]
    return Dialogue("no tool offered", [*system_messages(s), user, {"role": "assistant", "content": NO_TOOL}], tools)


def talk(s: Speaker) -> Dialogue:
    """Questions that are answered in words, with or without tools at hand."""
    rng = s.rng
    tools = offer(s, must=set()) if rng.random() < 0.4 else []
    if rng.random() < 0.25:
        questions = OUT_OF_SCOPE[::7] if s.evaluation else [q for i, q in enumerate(OUT_OF_SCOPE) if i % 7]
        question, answer, intent = rng.choice(questions), UNKNOWN, "out of scope"
    else:
        entry = rng.choice(ANSWERS)
        asked = entry.questions[-1:] if s.evaluation else entry.questions[:-1]
        question, answer, intent = rng.choice(asked), entry.answer, "in words"
    user = {"role": "user", "content": s.dress(question)}
    return Dialogue(intent, [*system_messages(s), user, {"role": "assistant", "content": answer}], tools)


def facts(s: Speaker) -> Dialogue:
    """A question about something that the system prompt says."""
    description, question, answer = plant_facts(s.rng)
    messages = [{"role": "system", "content": description}, {"role": "user", "content": s.dress(question)}]
    return Dialogue("facts of the prompt", [*messages, {"role": "assistant", "content": answer}])


def extraction(s: Speaker) -> Dialogue:
    """Device, quantity, value and unit of a sentence as JSON."""
    asked = set_value(s)
    order = {k: asked.calls[0][1][k] for k in ("device", "quantity", "value", "unit")}
    if s.rng.random() < 0.5:
        order.pop("quantity")
    keys = list(order)
    lead = s.rng.choice(
        (
            "Give {} as JSON: ",
            "Return {} as JSON: ",
            "Answer in JSON with {}: ",
            "Extract {} as JSON: ",
            "JSON with {}: ",
        )
    )
    text = lead.format(", ".join(keys[:-1]) + " and " + keys[-1]) + asked.text
    messages = [
        *system_messages(s),
        {"role": "user", "content": text},
        {"role": "assistant", "content": json.dumps(order)},
    ]
    return Dialogue("JSON", messages)


Mix = tuple[tuple[Callable[[Speaker], Dialogue], float], ...]

BASE: Mix = (
    (tool_dialogue, 10.0),
    (result_dialogue, 1.6),
    (lambda s: result_dialogue(s, turns=s.rng.randint(2, 4)), 1.0),
    (missing_tool, 1.3),
    (talk, 2.2),
    (facts, 0.8),
    (extraction, 1.0),
)


HARD: Mix = (
    (tool_dialogue, 5.0),
    (lambda s: tool_dialogue(s, two_share=1.0), 5.0),
    (result_dialogue, 2.5),
    (lambda s: result_dialogue(s, turns=s.rng.randint(2, 4)), 1.5),
    (missing_tool, 3.5),
    (talk, 1.5),
    (facts, 3.5),
    (extraction, 1.5),
)
"""More of what the earlier phases leave weak."""

FINAL: Mix = (
    (tool_dialogue, 8.0),
    (lambda s: tool_dialogue(s, two_share=1.0), 3.0),
    (result_dialogue, 1.6),
    (lambda s: result_dialogue(s, turns=s.rng.randint(2, 4)), 1.0),
    (missing_tool, 1.7),
    (talk, 1.8),
    (facts, 1.6),
    (extraction, 0.8),
)
"""In between: what the served model is left with."""

POLISH: Mix = (
    (tool_dialogue, 8.0),
    (lambda s: tool_dialogue(s, two_share=1.0), 3.0),
    (result_dialogue, 1.4),
    (lambda s: result_dialogue(s, turns=s.rng.randint(2, 4)), 1.0),
    (missing_tool, 4.5),
    (talk, 2.2),
    (facts, 1.6),
    (extraction, 0.8),
)
"""What is still weak at the end: missing tools above all."""

MIXES = {"base": BASE, "hard": HARD, "final": FINAL, "polish": POLISH}


def dialogue(s: Speaker, *, long_share: float = 0.0, mix: str = "base") -> Dialogue:
    """One training dialogue of one of MIXES."""
    if s.rng.random() < long_share:
        return tool_dialogue(s, long=True) if s.rng.random() < 0.6 else result_dialogue(s, turns=s.rng.randint(4, 14))
    makers, weights = zip(*MIXES[mix], strict=True)
    made: Dialogue = s.rng.choices(makers, weights)[0](s)
    return made
