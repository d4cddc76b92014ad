"""Proof that pulls survive what happens to them: `make prove-pull`.

Real `edge models pull` processes are killed with SIGKILL at random moments, on a server that cuts connections at random bytes
and damages one. In the end the file verifies; where it cannot, it is refused; at no moment does the store hold, or the node
resolve, anything that is not whole. A disk that is too small is named before the download starts. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.file_server import Cut, Damage, Fault, FileServer, Served
from bench.make_gguf import SHAPES, write_model
from edge.errors import ModelUnusable
from edge.registry.resolve import Registry

_BLOCK_BYTES = 64 << 10
_MANIFEST = """name = "proof"
task = "chat"
source = "{url}/model.gguf"
sha256 = "{sha256}"
licence = "Apache-2.0"
context_tokens = 2048
description = "Random weights."
"""
_PETABYTE = 10**15


@dataclass
class Case:
    """One way to treat a pull, and what came of it."""

    name: str
    kills: int
    expect: str
    """`verifies` or `refused`."""
    killed: int = 0
    new: int = 0
    """Kills after which the model was there already."""
    cuts: int = 0
    damaged: int = 0
    runs: int = 0
    sent_bytes: int = 0
    outcome: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Watch:
    """Looks at the store all the time, as a node would that starts at that moment."""

    def __init__(self, home: Path, data: bytes) -> None:
        self._home, self._data = home, data
        self.looks = 0
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.look()

    def look(self) -> None:
        """Every blob is whole and right, and what the node would serve is one of them."""
        self.looks += 1
        for blob in (self._home / "store" / "blobs").glob("*"):
            if blob.read_bytes() != self._data:
                self.faults.append(
                    f"a blob that is not the file was in the store: {blob.name[:12]}, {blob.stat().st_size} bytes"
                )
        try:
            found = Registry.at(self._home).resolve("proof")
        except ModelUnusable:
            return
        if found.path.read_bytes() != self._data:
            self.faults.append(f"the node would have served {found.path}")


def pull(home: Path) -> subprocess.Popen[str]:
    """A real process, as a person would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "edge", "models", "pull", "proof"],
        env={**os.environ, "EDGE_HOME": str(home), "no_proxy": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def partial_bytes(home: Path) -> int:
    """How much of the download is on the disk."""
    return sum(part.stat().st_size for part in (home / "store" / "partial").glob("*.part") if part.exists())


def kill_at_random(home: Path, chance: random.Random, size: int, case: Case) -> None:
    """Let a pull go on for a random while, often until it has written something, and end it without a warning."""
    child = pull(home)
    case.runs += 1
    begun, goal, longest_s = time.monotonic(), size, 1.0 * chance.random()  # by time: also while it starts
    if chance.random() < 0.5:  # by progress
        goal, longest_s = partial_bytes(home) + chance.randrange(0, size // max(1, case.kills)), 5.0
    while child.poll() is None and partial_bytes(home) < goal and time.monotonic() - begun < longest_s:
        time.sleep(0.003)
    if child.poll() is None:
        case.killed += 1
    child.kill()
    child.communicate()


def until_it_ends(home: Path, case: Case) -> tuple[int, str]:
    """Pull to the end, however often the server makes it begin again."""
    child = pull(home)
    case.runs += 1
    out, errors = child.communicate(timeout=300)
    return child.returncode, (errors if child.returncode else out).strip().splitlines()[-1]


def prove(case: Case, data: bytes, chance: random.Random, fault: Callable[[Case], Fault]) -> None:
    """One case in an EDGE_HOME of its own."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, FileServer() as server:
        home = Path(directory)
        (home / "models").mkdir()
        sha256 = hashlib.sha256(data).hexdigest()
        (home / "models" / "proof.toml").write_text(_MANIFEST.format(url=server.url, sha256=sha256))
        server.routes["/model.gguf"] = Served(data, pause_s=0.01)
        server.choose = lambda: fault(case)
        with Watch(home, data) as watch:
            while case.killed < case.kills and case.runs < 3 * case.kills:
                kill_at_random(home, chance, len(data), case)
            code, said = until_it_ends(home, case)
        watch.look()
        case.faults += watch.faults
        case.sent_bytes = server.sent_bytes
        _judge(case, home, code, said)
        if case.outcome == "verifies":
            verified = _edge(home, "models", "verify", "proof")
            if verified.returncode != 0:
                case.faults.append(f"`edge models verify` says: {verified.stdout.strip()}")
    case.seconds = time.monotonic() - begun


def prove_the_end(data: bytes, chance: random.Random, kills: int) -> Case:
    """Kills at the moments in which a file is checked, named and written down: before it is the old state, then the new one."""
    case = Case("killed while it is published", kills, "verifies", outcome="verifies")
    begun, sha256 = time.monotonic(), hashlib.sha256(data).hexdigest()
    lasts_s = 0.0
    with FileServer() as server:
        server.routes["/model.gguf"] = Served(data)
        for number in range(kills + 1):
            with tempfile.TemporaryDirectory() as directory:
                home = Path(directory)
                (home / "models").mkdir()
                (home / "models" / "proof.toml").write_text(_MANIFEST.format(url=server.url, sha256=sha256))
                watch, started, child = Watch(home, data), time.monotonic(), pull(home)
                if number == 0:  # how long it takes when nobody interferes
                    child.communicate()
                    lasts_s = time.monotonic() - started
                else:
                    while partial_bytes(home) < len(data) and child.poll() is None:
                        time.sleep(0.0005)
                    time.sleep(chance.random() * 0.05 * lasts_s)
                    case.killed += child.poll() is None
                    child.kill()
                    child.communicate()
                    case.new += (home / "store" / "names" / "proof.json").exists()
                watch.look()
                code, said = until_it_ends(home, case)
                watch.look()
                case.faults += watch.faults
                if code != 0 or [blob.name for blob in (home / "store" / "blobs").glob("*")] != [sha256]:
                    case.outcome = "neither"
                    case.faults.append(f"exit status {code}: {said}")
        case.sent_bytes = server.sent_bytes // (kills + 1)
    case.runs += kills + 1
    case.seconds = time.monotonic() - begun
    return case


def _judge(case: Case, home: Path, code: int, said: str) -> None:
    blobs = list((home / "store" / "blobs").glob("*"))
    case.outcome = "verifies" if code == 0 and len(blobs) == 1 else "refused" if code == 1 and not blobs else "neither"
    if case.outcome != case.expect:
        case.faults.append(f"{case.outcome}, {case.expect} was expected; exit status {code}: {said}")
    if case.killed < case.kills:
        case.faults.append(
            f"only {case.killed} of {case.kills} processes were still at work when they were to be killed"
        )


def _edge(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge", *arguments],
        env={**os.environ, "EDGE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def prove_full_disk() -> list[str]:
    """A file larger than any disk: refused with figures, and not one byte of it asked for."""
    with tempfile.TemporaryDirectory() as directory, FileServer() as server:
        server.routes["/model.gguf"] = Served(b"GGUF", announced=_PETABYTE)
        done = _edge(Path(directory), "models", "pull", f"{server.url}/model.gguf")
        faults = (
            []
            if done.returncode == 1 and "not enough space: " in done.stderr
            else [f"not named: {done.stderr.strip()}"]
        )
        if server.gets("/model.gguf"):
            faults.append("the download had begun")
        print(f"a disk that is too small: {done.stderr.strip().splitlines()[-1]}")
        return faults


def cases(chance: random.Random, kills: int, size: int) -> list[tuple[Case, Callable[[Case], Fault]]]:
    """What is done to pulls."""

    def cut(case: Case) -> Fault:
        case.cuts += 1
        return Cut(chance.randrange(1, size // 3))

    def cut_often(case: Case) -> Fault:
        return cut(case) if chance.random() < 0.7 else None

    damage_at = chance.randrange(size // 2, size)

    def damage_once(case: Case) -> Fault:
        if case.killed >= case.kills and not case.damaged:
            case.damaged += 1
            return Damage(max(damage_at, size - _BLOCK_BYTES))  # what is surely still to come
        return cut_often(case)

    def damage_always(case: Case) -> Fault:
        case.damaged += 1
        return Damage(size - 1)

    return [
        (Case("killed", kills, "verifies"), lambda case: None),
        (Case("killed, and connections cut", kills, "verifies"), cut_often),
        (Case("killed, cut, one byte damaged", kills, "verifies"), damage_once),
        (Case("one byte damaged every time", 2, "refused"), damage_always),
    ]


def report(done: list[Case], size: int, seconds: float) -> bool:
    """Print the table. True if all is well."""
    head = f"{'case':32} {'killed':>6} {'runs':>5} {'cuts':>5} {'damaged':>7} {'sent':>10} {'s':>6}  outcome"
    print(head)
    for case in done:
        print(
            f"{case.name:32} {case.killed:6} {case.runs:5} {case.cuts:5} {case.damaged:7} "
            f"{case.sent_bytes / 1e6:7.1f} MB {case.seconds:6.1f}  {case.outcome}"
        )
    print(
        f"of those killed while it was published, {done[0].new} had published it, {done[0].killed - done[0].new} had not"
    )
    for case in done:
        for fault in case.faults[:5]:
            print(f"FAULT {case.name}: {fault}")
    print(f"file of {size / 1e6:.1f} MB; {seconds:.0f} s in all")
    return not any(case.faults for case in done)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="processes that are killed in each case")
    parser.add_argument("--seed", type=int, default=None, help="same kills and cuts again, as far as time allows")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    a = parser.parse_args()
    seed = a.seed if a.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, begun = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        write_model(path, SHAPES["15m"], kind="f16", seed=1)
        data = path.read_bytes()
        write_model(path, SHAPES["tiny"], kind="f16", seed=1)
        small = path.read_bytes()
    full = prove_full_disk()
    done = [prove_the_end(small, chance, a.kills)]
    for case, fault in cases(chance, a.kills, len(data)):
        prove(case, data, chance, fault)
        done.append(case)
    seconds = time.monotonic() - begun
    well = report(done, len(data), seconds)
    for fault_text in full:
        print(f"FAULT full disk: {fault_text}")
    if a.json is not None:
        figures = [vars(case) for case in done]
        a.json.write_text(
            json.dumps(
                {"seed": seed, "file_bytes": len(data), "seconds": round(seconds, 1), "cases": figures}, indent=1
            )
        )
    return 0 if well and not full else 1


if __name__ == "__main__":
    sys.exit(main())
