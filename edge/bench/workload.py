"""What is asked and when: prompts of plain words and arrival times, all from one seed. Pure.

Every server of a run gets the same jobs. Words outside the shared prefix differ from request to request, from level to
level and from round to round, so that no server answers from its cache by accident.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

LoadKind = Literal["rate", "concurrency", "trace"]

_WORDS_A_SENTENCE = 11
_TEXT = """
pump valve motor sensor belt tank filter pressure level speed shift operator report line station cable panel door light fan
heater cooler water steam oil air sand stone paper glass metal wood copper iron salt sugar grain fruit morning evening
winter summer market street river bridge garden window table letter number colour sound voice north south east west early
late warm cold dry wet open closed narrow wide heavy quiet bright dark clean empty checks moves holds turns lifts cuts
fills sends brings keeps finds shows counts writes reads starts stops waits near under over behind before after between
against without within across along beside beyond through around seven twelve forty hundred second minute hour day week
month year half double first last next other same
"""
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Load:
    """One level of load: `value` requests a second, `value` requests at a time, or a trace (`value` is 0)."""

    kind: LoadKind
    value: float

    @property
    def label(self) -> str:
        """How tables and plots call it."""
        return {"rate": f"{self.value:g}/s", "concurrency": f"{self.value:g} at once", "trace": "trace"}[self.kind]


@dataclass(frozen=True, slots=True)
class Mix:
    """Lengths of prompts and answers. Every `long_every`th prompt has `long_words`; 0: none has."""

    prompt_words: int = 20
    shared_prefix_words: int = 150
    long_every: int = 5
    long_words: int = 300
    output_tokens: int = 64


MIXES = {"mixed": Mix(), "plain": Mix(shared_prefix_words=0, long_every=0, long_words=0)}


@dataclass(frozen=True, slots=True)
class Job:
    """One request to send `at_s` seconds after the level began. `messages` is empty for a bare `prompt`."""

    at_s: float
    max_tokens: int
    messages: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    long: bool = False


def words(rng: random.Random, count: int) -> str:
    """`count` words in sentences."""
    chosen = rng.choices(_WORDS, k=count)
    sentences = [" ".join(chosen[at : at + _WORDS_A_SENTENCE]) for at in range(0, count, _WORDS_A_SENTENCE)]
    return " ".join(f"{sentence.capitalize()}." for sentence in sentences)


def poisson_arrivals(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Arrival times within `duration_s`, in seconds: gaps are exponential, so arrivals do not wait for answers."""
    at_s = rng.expovariate(rate_rps)
    while at_s < duration_s:
        yield at_s
        at_s += rng.expovariate(rate_rps)


def open_jobs(mix: Mix, seed: int, round_number: int, load: Load, duration_s: float) -> list[Job]:
    """The jobs of one open-loop level: the same for the same arguments."""
    arrivals = poisson_arrivals(random.Random(f"{seed}/{round_number}/{load.label}/arrivals"), load.value, duration_s)
    return list(_jobs(mix, seed, round_number, load, arrivals))


def closed_jobs(mix: Mix, seed: int, round_number: int, load: Load) -> Iterator[Job]:
    """An endless supply for one closed-loop level: the next is sent when an answer has ended."""
    return _jobs(mix, seed, round_number, load, itertools.repeat(0.0))


def _jobs(mix: Mix, seed: int, round_number: int, load: Load, arrivals: Iterator[float]) -> Iterator[Job]:
    rng = random.Random(f"{seed}/{round_number}/{load.label}/words")
    shared = words(random.Random(f"{seed}/shared"), mix.shared_prefix_words)
    for number, at_s in enumerate(arrivals, start=1):
        long = mix.long_every > 0 and number % mix.long_every == 0
        asked = words(rng, mix.long_words if long else mix.prompt_words)
        system = ({"role": "system", "content": shared},) if shared else ()
        yield Job(
            at_s,
            mix.output_tokens,
            messages=(*system, {"role": "user", "content": asked}),
            prompt=f"{shared}\n\n{asked}" if shared else asked,
            long=long,
        )
