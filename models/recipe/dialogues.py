"""Dialogues: what is asked, which tools are offered, and the answer that is right; fixed by the random state."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import wordings as w
from .catalogue import BY_NAME, CATALOGUE, DISTRACTORS, Tool
from .prose import ANSWERS, NO_TOOL, OUT_OF_SCOPE, UNKNOWN, plant_description, plant_facts, result_sentence
from .world import KINDS, QUANTITIES, SEVERITIES, UNIT_PAIRS, draw_device, draw_value, held_out, in_words

Message = dict[str, Any]


@dataclass(slots=True)
class Ask:
    """One user sentence and the calls that answer it. `intent` names the row of the evaluation's table."""

    intent: str
    text: str
    calls: list[tuple[str, dict[str, Any]]]


@dataclass(slots=True)
class Dialogue:
    """Messages (the last one is the assistant's right answer) and the tools offered."""

    intent: str
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


QUESTION_OPENERS = ("", "", "", "please ", "hey, ", "ok, ", "now ", "hi, ", "hello, ", "ok now ", "then ", "also ")
QUESTIONS = (
    "what",
    "how",
    "which",
    "any",
    "are ",
    "do ",
    "is ",
    "does",
    "the ",
    "current",
    "value",
    "time",
    "{x}",
    "{d}",
    "{q}",
    "{s}",
)


class Speaker:
    """Makes sentences. `evaluation`: only held-out wordings and held-out combinations; else only the others."""

    def __init__(self, rng: random.Random, *, evaluation: bool) -> None:
        self.rng = rng
        self.evaluation = evaluation

    def wording(self, sentences: w.Wordings) -> str:
        return self.rng.choice(sentences.held_out if self.evaluation else sentences.train)

    def combination(self, draw: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Draw until the combination (all but the last element is its key) is on the right side of the split."""
        while True:
            drawn = draw()
            if held_out(*drawn[0]) == self.evaluation:
                return drawn

    def dress(self, sentence: str) -> str:
        """Politeness, punctuation, case, and (in training only) a typo now and then."""
        rng = self.rng
        question = sentence.startswith(QUESTIONS) or sentence[:1].isdigit() or "?" in sentence
        text = rng.choice(QUESTION_OPENERS if question else w.OPENERS) + sentence
        if question and rng.random() < 0.6:
            text += "?"
        else:
            text += rng.choice(w.CLOSERS)
        if rng.random() < 0.55:
            text = text[0].upper() + text[1:]
        elif rng.random() < 0.08:
            text = text.upper() if rng.random() < 0.3 else text.title()
        if not self.evaluation and rng.random() < 0.04 and len(text) > 12:
            at = rng.randrange(1, len(text) - 1)
            if text[at].isalpha() and text[at + 1].isalpha():
                text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        return text

    def name(self, device: str) -> str:
        """How a device is written: mostly as is, sometimes `pump no. 3`, `the pump 3`, `pump three`, `pump #3`."""
        kind, number = device.split(" ")
        roll = self.rng.random()
        if roll < 0.72:
            return device
        if roll < 0.8:
            return f"the {device}"
        if roll < 0.86:
            return f"{kind} number {number}"
        if roll < 0.92:
            return f"{kind} {in_words(int(number))}"
        return f"{kind} #{number}" if roll < 0.96 else f"{kind}{number}"

    def value(self, value: float | int, spelling: str, *, words_ok: bool) -> str:
        if words_ok and isinstance(value, int) and value < 100 and self.rng.random() < 0.1:
            return in_words(value) + (
                spelling if spelling.startswith(" ") else " percent" if spelling == "%" else f" {spelling}"
            )
        return f"{value}{spelling if spelling != 'percent' else ' percent'}"


def _set_value(s: Speaker) -> Ask:
    def draw() -> tuple[Any, ...]:
        kind, device = draw_device(s.rng)
        names = [q for q in KINDS[kind] if QUANTITIES[q].settable]
        quantity = QUANTITIES[s.rng.choice(names)]
        return ("set", device, quantity.name), device, quantity

    _, device, quantity = s.combination(draw)
    value, unit, spelling = draw_value(s.rng, quantity)
    shown = s.value(value, spelling, words_ok=True)
    text = s.wording(w.SET_VALUE).format(d=s.name(device), q=quantity.name, v=shown)
    return Ask(
        "set a value",
        text,
        [("set_value", {"device": device, "quantity": quantity.name, "value": value, "unit": unit})],
    )


def _read_value(s: Speaker) -> Ask:
    def draw() -> tuple[Any, ...]:
        kind, device = draw_device(s.rng)
        quantity = s.rng.choice(KINDS[kind])
        return ("read", device, quantity), device, quantity

    _, device, quantity = s.combination(draw)
    text = s.wording(w.READ_VALUE).format(d=s.name(device), q=quantity)
    return Ask("read a value", text, [("read_value", {"device": device, "quantity": quantity})])


def _switch(s: Speaker, name: str, sentences: w.Wordings) -> Ask:
    def draw() -> tuple[Any, ...]:
        _, device = draw_device(s.rng)
        return (name, device), device

    _, device = s.combination(draw)
    return Ask(name.replace("_", " "), s.wording(sentences).format(d=s.name(device)), [(name, {"device": device})])


def _start(s: Speaker) -> Ask:
    return _switch(s, "start_device", w.START)


def _stop(s: Speaker) -> Ask:
    return _switch(s, "stop_device", w.STOP)


def _list_alarms(s: Speaker) -> Ask:
    if s.rng.random() < 0.35:
        return Ask("list alarms", s.wording(w.LIST_ALL_ALARMS), [("list_alarms", {"severity": "all"})])
    severity = s.rng.choice(SEVERITIES)
    return Ask("list alarms", s.wording(w.LIST_ALARMS).format(s=severity), [("list_alarms", {"severity": severity})])


def _acknowledge(s: Speaker) -> Ask:
    _, number = s.combination(
        lambda: (("ack", n := s.rng.randint(1, 9999) if s.rng.random() < 0.6 else s.rng.randint(1, 200)), n)
    )
    return Ask(
        "acknowledge an alarm", s.wording(w.ACKNOWLEDGE).format(n=number), [("acknowledge_alarm", {"alarm_id": number})]
    )


def _set_alarm(s: Speaker) -> Ask:
    def draw() -> tuple[Any, ...]:
        kind, device = draw_device(s.rng)
        quantity = QUANTITIES[s.rng.choice(KINDS[kind])]
        return ("alarm", device, quantity.name), device, quantity

    _, device, quantity = s.combination(draw)
    value, unit, spelling = draw_value(s.rng, quantity)
    direction = s.rng.choice(("above", "below"))
    word = s.rng.choice(w.ABOVE if direction == "above" else w.BELOW)
    shown = s.value(value, spelling, words_ok=False)
    text = s.wording(w.SET_ALARM).format(d=s.name(device), q=quantity.name, dir=word, v=shown)
    arguments = {"device": device, "quantity": quantity.name, "direction": direction, "value": value, "unit": unit}
    return Ask("set an alarm", text, [("set_alarm", arguments)])


def _convert(s: Speaker) -> Ask:
    def draw() -> tuple[Any, ...]:
        pair = s.rng.choice(UNIT_PAIRS)
        value: float | int = s.rng.randint(1, 500) if s.rng.random() < 0.8 else round(s.rng.uniform(0.5, 99.5), 1)
        return ("convert", pair, value), pair, value

    _, (a, b), value = s.combination(draw)
    text = s.wording(w.CONVERT).format(x=value, a=a, b=b)
    return Ask("convert units", text, [("convert_unit", {"value": value, "from_unit": a, "to_unit": b})])


def _get_time(s: Speaker) -> Ask:
    return Ask("get the time", s.wording(w.GET_TIME), [("get_time", {})])


def _schedule(s: Speaker) -> Ask:
    def draw() -> tuple[Any, ...]:
        _, device = draw_device(s.rng)
        action = s.rng.choice(("start", "stop"))
        return ("schedule", action, device), device, action

    _, device, action = s.combination(draw)
    hour, minute = s.rng.randrange(24), s.rng.choice((0, 0, 0, 15, 30, 45, s.rng.randrange(60)))
    time = f"{hour:02}:{minute:02}"
    shown = time if s.rng.random() < 0.75 else f"{hour}:{minute:02}"
    text = s.wording(w.SCHEDULE).format(d=s.name(device), act=action, t=shown)
    return Ask("schedule", text, [("schedule", {"action": action, "device": device, "time": time})])


SIMPLE: tuple[tuple[Callable[[Speaker], Ask], float], ...] = (
    (_set_value, 3.0),
    (_read_value, 2.0),
    (_start, 1.2),
    (_stop, 1.2),
    (_list_alarms, 1.0),
    (_acknowledge, 1.0),
    (_set_alarm, 2.0),
    (_convert, 1.2),
    (_get_time, 0.4),
    (_schedule, 1.5),
)


def ask(s: Speaker) -> Ask:
    """One request for one call."""
    makers, weights = zip(*SIMPLE, strict=True)
    made: Ask = s.rng.choices(makers, weights)[0](s)
    return made


def ask_two(s: Speaker) -> Ask:
    """A compound request: two calls, in order."""
    first, second = ask(s), ask(s)
    joint = s.rng.choice((" and ", " and then ", ", then ", ", and ", "; ", " and also "))
    return Ask("two requests", first.text.rstrip(".!?") + joint + second.text, first.calls + second.calls)


def call_message(calls: list[tuple[str, dict[str, Any]]]) -> Message:
    """The assistant's message with these calls."""
    made = [{"type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for n, a in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def offer(s: Speaker, *, must: set[str], without: set[str] = frozenset()) -> list[Tool]:  # type: ignore[assignment]
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


def tool_dialogue(s: Speaker, *, long: bool = False) -> Dialogue:
    """A sentence and the calls it asks for; in a longer dialogue also the results and the answers."""
    asked = ask_two(s) if s.rng.random() < 0.15 else ask(s)
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
    asked = _set_value(s)
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


MIX: tuple[tuple[Callable[[Speaker], Dialogue], float], ...] = (
    (tool_dialogue, 10.0),
    (result_dialogue, 1.6),
    (lambda s: result_dialogue(s, turns=s.rng.randint(2, 4)), 1.0),
    (missing_tool, 1.3),
    (talk, 2.2),
    (facts, 0.8),
    (extraction, 1.0),
)


def dialogue(s: Speaker, *, long_share: float = 0.0) -> Dialogue:
    """One training dialogue."""
    if s.rng.random() < long_share:
        return tool_dialogue(s, long=True) if s.rng.random() < 0.6 else result_dialogue(s, turns=s.rng.randint(4, 14))
    makers, weights = zip(*MIX, strict=True)
    made: Dialogue = s.rng.choices(makers, weights)[0](s)
    return made
