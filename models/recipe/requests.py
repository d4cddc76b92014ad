"""Requests: a sentence of an operator and the calls that it asks for; fixed by the random state."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import wordings as w
from .world import KINDS, QUANTITIES, SEVERITIES, UNIT_PAIRS, draw_device, draw_value, held_out, in_words


@dataclass(slots=True)
class Ask:
    """One user sentence and the calls that answer it. `intent` names the row of the evaluation's table."""

    intent: str
    text: str
    calls: list[tuple[str, dict[str, Any]]]


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


def set_value(s: Speaker) -> Ask:
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
    (set_value, 3.0),
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
