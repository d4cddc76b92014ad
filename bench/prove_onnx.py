"""An encoder of MiniLM's size behind the node: how soon, how many, and what the language model beside it feels.

`python -m bench.prove_onnx latency gguf throughput beside --out FILE`. The encoder has random weights (bench/make_onnx.py). Each
part runs a real node, prints its figures and whether what is promised held; the exit status is 1 if something did not.

- latency: one sentence at a time, from an idle node.
- gguf: the same with the same weights as GGUF, Q8_0.
- throughput: texts a second by /v1/embeddings, beside a plain onnxruntime loop with whichever fixed batch is best; in turns.
- beside: the language model's times alone, and while clients ask the encoder; in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from bench import make_gguf_encoder, make_onnx, servers
from bench.held import Held, chosen, parser, prove
from bench.prove_models import BUILTIN, Load, Tally
from bench.servers import Server
from edge.bench.machine import largest_gap_s
from edge.bench.outcome import percentile
from edge.machine import usable_cores

NAME = "minilm"
CONTEXT_TOKENS = 256
BATCHES = (1, 2, 4, 8, 16, 32)
PER_REQUEST, CLIENTS = 32, 2
_SYLLABLES = ("pump", "va", "lve", "to", "ring", "al", "arm", "en", "est", "or", "ation", "he", "at")
_SHORT_WORDS = 6


def manifest(name: str, place: Path) -> str:
    """How the node knows a made encoder: the directory of an ONNX one, or a GGUF file."""
    if place.suffix == ".gguf":
        return (
            f'name = "{name}"\ntask = "embedding"\nsource = "file:{place}"\nfile = "{place}"\nlicence = "Apache-2.0"\n'
            f'context_tokens = {CONTEXT_TOKENS}\ndescription = "Random weights."\n'
        )
    return _onnx_manifest(name, place)


def _onnx_manifest(name: str, directory: Path) -> str:
    return (
        f'name = "{name}"\ntask = "embedding"\nsource = "file:{directory / "model.onnx"}"\nfile = "{directory / "model.onnx"}"\n'
        f'licence = "Apache-2.0"\ncontext_tokens = {CONTEXT_TOKENS}\ndescription = "Random weights."\n'
        '[encoder]\npooling = "mean"\n'
        f'[[files]]\nfile = "tokenizer.json"\nsource = "file:{directory / "tokenizer.json"}"\n'
    )


@contextlib.contextmanager
def node(encoder: Path, mode: str) -> Iterator[Server]:
    """A node on the built-in model with the encoder beside it."""

    def prepare(home: Path) -> None:
        (home / "models").mkdir()
        (home / "models" / f"{NAME}.toml").write_text(manifest(NAME, encoder))
        (home / "edge.toml").write_text(f"[models.{NAME}]\n")

    env = {"EDGE_ADMISSION__MODE": mode}
    with servers.edge(BUILTIN, slots=4, context_tokens=1024, threads=0, env=env, prepare=prepare) as server:
        Client(server).embed(["wake up"])
        yield server


class Client:
    """One connection that is kept."""

    def __init__(self, server: Server) -> None:
        where = urlsplit(server.url)
        self._http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=120)

    def embed(self, texts: Sequence[str]) -> float:
        """Seconds until the vectors were there."""
        body = json.dumps({"model": NAME, "input": list(texts), "encoding_format": "base64"}).encode()
        begun_s = time.monotonic()
        self._http.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        said = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{answer.status}: {said[:200]!r}")
        return time.monotonic() - begun_s


def sentence(chance: random.Random, words: int) -> str:
    """Text without sense."""
    return " ".join("".join(chance.choices(_SYLLABLES, k=2)) for _ in range(words))


def latency(a: argparse.Namespace, encoder: Path, held: Held) -> dict[str, Any]:
    """One short sentence after the other, while the language model is idle."""
    chance = random.Random(1)
    found = {}
    for mode in ("off", "best-effort"):
        with node(encoder, mode) as server:
            client = Client(server)
            took = [client.embed([sentence(chance, _SHORT_WORDS)]) * 1000 for _ in range(a.sentences)]
        found[mode] = {f"p{round(q * 100)}": round(percentile(took, q), 2) for q in (0.5, 0.9, 0.99)}
        form = "GGUF" if encoder.suffix == ".gguf" else "ONNX"
        held.check(
            f"one sentence, {form}, admission.mode {mode}, p99 in ms", found[mode]["p99"], found[mode]["p99"] < 50
        )
    return {"one sentence, ms, by admission.mode": found, "sentences": a.sentences}


def gguf_latency(a: argparse.Namespace, encoder: Path, held: Held) -> dict[str, Any]:
    """The same weights by libllama."""
    path = make_gguf_encoder.write_encoder(encoder / "model-q8_0.gguf", make_onnx.SHAPES[NAME], kind="q8_0")
    return latency(a, path, held)


class Plain:
    """The loop that anybody would write: so many texts at a time, filled up to the longest of them. `spins`: threads wait for
    each other awake, as is the library's default; beside others' work it is the worse choice."""

    def __init__(self, encoder: Path, *, spins: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
        path = str(encoder / "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str], batch: int) -> float:
        """Seconds until all had their vectors."""
        begun_s = time.monotonic()
        for at in range(0, len(texts), batch):
            read = self._tokenizer.encode_batch(list(texts[at : at + batch]))
            tokens = np.array([one.ids for one in read])
            mask = np.array([one.attention_mask for one in read])
            feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
            (states, *_) = self._session.run(["last_hidden_state"], feeds)
            mean = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        return time.monotonic() - begun_s


def by_node(server: Server, texts: Sequence[str]) -> float:
    """Seconds for all, by a few clients, each with several texts at a time."""
    parts = [texts[at : at + PER_REQUEST] for at in range(0, len(texts), PER_REQUEST)]

    def one(number: int) -> None:
        client = Client(server)
        for part in parts[number::CLIENTS]:
            client.embed(part)

    begun_s = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(CLIENTS)))
    return time.monotonic() - begun_s


KINDS: dict[str, Callable[[random.Random], int]] = {
    "of one length": lambda _: 12,
    "of mixed lengths": lambda chance: chance.choice((3, 6, 10, 16, 24, 40)),
}
"""Words of a text."""


def throughput(a: argparse.Namespace, encoder: Path, held: Held) -> dict[str, Any]:
    """Texts a second, both ways."""
    found: dict[str, Any] = {}
    plain = {name: Plain(encoder, spins=name == "awake") for name in ("awake", "asleep")}
    with node(encoder, "off") as server:
        for kind, words in KINDS.items():
            chance = random.Random(2)
            texts = [sentence(chance, words(chance)) for _ in range(a.texts)]
            some = texts[: len(texts) // 2]
            tried = {(how, b): len(some) / loop.embed(some, b) for how, loop in plain.items() for b in BATCHES}
            how, best = max(tried, key=lambda key: tried[key])
            loop, ours = [], []
            for _ in range(a.rounds):
                loop.append(len(texts) / plain[how].embed(texts, best))
                ours.append(len(texts) / by_node(server, texts))
            ratio = statistics.median(o / p for o, p in zip(ours, loop, strict=True))
            found[kind] = {
                "plain loop by waiting and batch, texts/s": {f"{h} {b}": round(v, 1) for (h, b), v in tried.items()},
                "best": f"{how} {best}",
                "plain loop, texts/s": [round(v, 1) for v in loop],
                "node, texts/s": [round(v, 1) for v in ours],
                "node over plain loop": round(ratio, 3),
            }
            held.check(f"texts {kind}: node over the plain loop with batch {best}", ratio, ratio >= 1.0)
    return found


class Neighbour:
    """Clients that ask the encoder one sentence after the other, until the block ends."""

    def __init__(self, server: Server, clients: int) -> None:
        self._server, self._clients = server, clients
        self._over = threading.Event()
        self.took_s: list[float] = []

    def __enter__(self) -> Neighbour:
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(self._clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        chance, client = random.Random(number), Client(self._server)
        while not self._over.is_set():
            self.took_s.append(client.embed([sentence(chance, _SHORT_WORDS)]))


_TURNS = 5


def beside(a: argparse.Namespace, encoder: Path, held: Held) -> dict[str, Any]:
    """Two clients of the language model; then two of the encoder as well."""
    alone, together = Tally(), Tally()
    asked_s: list[float] = []

    async def turn(server: Server, tally: Tally) -> None:
        async with Load(server, 2, lambda _: server.model, 3, tally):
            await asyncio.sleep(a.seconds / _TURNS)

    with node(encoder, "best-effort") as server:
        for _ in range(_TURNS):
            asyncio.run(turn(server, alone))
            with Neighbour(server, 2) as neighbour:
                asyncio.run(turn(server, together))
            asked_s += neighbour.took_s
        gap_ms = largest_gap_s(1.0) * 1000
    found: dict[str, Any] = {}
    for how, tally in (("alone", alone), ("beside", together)):
        gaps_ms = [gap * 1000 for gap in tally.gaps_s[BUILTIN.stem]]
        first_ms = [first * 1000 for first in tally.first_s[BUILTIN.stem]]
        found[how] = {
            "gap, ms": {f"p{round(q * 100)}": round(percentile(gaps_ms, q), 2) for q in (0.5, 0.99)},
            "first token, ms": {f"p{round(q * 100)}": round(percentile(first_ms, q), 2) for q in (0.5, 0.99)},
            "gaps": len(gaps_ms),
            "failed": dict(tally.failed),
        }
    found["encoder meanwhile"] = {
        "sentences/s": round(len(asked_s) / a.seconds, 1),
        "ms": {f"p{round(q * 100)}": round(percentile([s * 1000 for s in asked_s], q), 1) for q in (0.5, 0.99)},
    }
    alone_ms, beside_ms = (found[how]["gap, ms"]["p99"] for how in ("alone", "beside"))
    near = beside_ms <= max(50.0, 1.5 * alone_ms)
    held.check(f"language model's gap p99 beside the encoder, ms (alone {alone_ms:g})", beside_ms, near)
    return {**found, "spin_loop_largest_gap_ms": round(gap_ms, 2)}


PARTS = {"latency": latency, "gguf": gguf_latency, "throughput": throughput, "beside": beside}


def main() -> int:
    """Command line."""
    given = parser(__doc__, tuple(PARTS))
    given.add_argument("--sentences", type=int, default=300)
    given.add_argument("--texts", type=int, default=512)
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--seconds", type=float, default=40.0, help="of the load on the language model, each way")
    a = given.parse_args()
    about = {"encoder": f"{NAME}, float32, random weights", "onnxruntime": onnxruntime.__version__}
    wanted = chosen(given, a, tuple(PARTS))
    with tempfile.TemporaryDirectory() as scratch:
        encoder = make_onnx.write_encoder(Path(scratch) / NAME, make_onnx.SHAPES[NAME]).parent
        return prove({name: partial(PARTS[name], a, encoder) for name in wanted}, about, a.out)


if __name__ == "__main__":
    sys.exit(main())
