"""Proof that a node's identity survives what happens to it: `make prove-enroll-node`.

kill -9 before every effect of enrolling, enrolling anew, renewing and resetting; three times in a row at random ones; and real
`edge enroll` processes at random moments. Afterwards the same command ends well, the fleet knows one node with one key, and
nobody else can read anything. strongSwan's EST client enrolls at the server that this is tried against, so that it is one. Exit
status 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.enroll_sweep import Case, Sweep
from bench.enroll_victim import Victim
from bench.est_authority import public_pem
from bench.est_server import EstServer

_KINDS = ("enroll", "force", "renew", "reset")


def sweeps(est: EstServer, place: Path, threes: int, seed: int) -> dict[str, list[Case]]:
    """Every single place, and random ones three times in a row."""
    found: dict[str, list[Case]] = {}
    with Victim() as victim:
        sweep = Sweep(est, victim, place)
        for what in _KINDS:
            found[what] = list(sweep.each(what))
            found[f"{what}, three kills"] = list(sweep.threes(what, len(found[what]), threes, seed))
            for name in (what, f"{what}, three kills"):
                wrong = [case for case in found[name] if case.wrong]
                print(f"{name:20} {len(found[name]):4} cases, {len(wrong)} wrong")
                for case in wrong:
                    print(f"  FAULT before {', '.join(case.effects)}: {case.wrong}")
    return found


def command_line(est: EstServer, place: Path, count: int, chance: random.Random) -> tuple[list[float], list[str]]:
    """Whole processes: first how long one takes, then killed at random moments. Returns (seconds, faults)."""
    times: list[float] = []
    faults: list[str] = []
    for number in range(count):
        home, token = place / f"cli-{number}", est.token(f"cli{number:04}")
        env = {**os.environ, "EDGE_HOME": str(home), "EDGE_ENROLL_TOKEN": token}
        words = [sys.executable, "-m", "edge", "enroll", "--fleet", est.url]
        if number >= 3:
            victim = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(chance.uniform(0.05, 1.2 * max(times)))
            victim.kill()
            victim.wait()
        begun_s = time.monotonic()
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if number < 3:
            times.append(time.monotonic() - begun_s)
        nodes = [name for name in est.nodes if name.startswith(f"cli{number:04}-")]
        if done.returncode != 0 or len(nodes) != 1 or len(est.nodes[nodes[0]].keys) != 1:
            faults.append(f"number {number}: status {done.returncode}, nodes {nodes}: {done.stderr.strip()}")
        loose = [
            p for p in (home / "identity").rglob("*") if not p.is_symlink() and stat.S_IMODE(p.stat().st_mode) & 0o077
        ]
        faults += [f"number {number}: {path} can be read by others" for path in loose]
    print(f"edge enroll took {', '.join(f'{s:.2f}' for s in times)} s; killed {count - 3} times, {len(faults)} faults")
    return times, faults


def strongswan(est: EstServer, place: Path) -> str:
    """What an independent client has against the trial server; empty if nothing."""
    pki = shutil.which("pki")
    if pki is None:
        raise RuntimeError("strongSwan's pki is not installed; it is the package `strongswan-pki` of Debian and others")
    token = est.tokens[est.token("swan").split("::")[1].split(":")[0]]
    root = place / "root.pem"
    root.write_bytes(public_pem(est.authority.root.certificate))
    key, request = place / "swan.key", place / "swan.csr"
    key.write_bytes(_made(pki, "--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem"))
    dn = ("--dn", "CN=swan", "--outform", "der")
    request.write_bytes(_made(pki, "--req", "--in", str(key), "--type", "ecdsa", *dn))
    words = [pki, "--est", "--url", est.url, "--in", str(request), "--cacert", str(root)]
    done = subprocess.run(
        [*words, "--userpass", f"swan:{token.secret}", "--outform", "pem"], capture_output=True, text=True, check=False
    )
    good = done.returncode == 0 and "BEGIN CERTIFICATE" in done.stdout
    print(f"strongSwan's client at the trial server: {'enrolled' if good else done.stderr.strip()[-300:]}")
    return "" if good else "strongSwan's client did not enroll"


def _made(*words: str) -> bytes:
    return subprocess.run(words, capture_output=True, check=True).stdout


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threes", type=int, default=50, help="cases with three kills, of each kind")
    parser.add_argument("--processes", type=int, default=25, help="whole processes")
    parser.add_argument("--seed", type=int, default=None, help="the same random places again")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    a = parser.parse_args()
    seed = a.seed if a.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}")
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        est = EstServer(place / "est")
        found = sweeps(est, place, a.threes, seed)
        times, faults = command_line(est, place, a.processes, random.Random(seed))
        faults += filter(None, [strongswan(est, place)])
        faults += [f"complaint: {text}" for text in est.complaints]
        est.stop()
    for fault in faults:
        print(f"FAULT {fault}")
    wrong = [case for cases in found.values() for case in cases if case.wrong]
    if a.json is not None:
        places = {what: list(Counter(case.effects[0] for case in found[what])) for what in _KINDS}
        figures = {
            "seed": seed,
            "seconds": round(time.monotonic() - begun_s, 1),
            "enroll_s": [round(s, 2) for s in times],
        }
        counts = {name: len(cases) for name, cases in found.items()}
        a.json.write_text(json.dumps({**figures, "cases": counts, "wrong": len(wrong), "faults": faults, "killed_before": places}, indent=1) + "\n")  # fmt: skip  # noqa: E501
    return 1 if wrong or faults else 0


if __name__ == "__main__":
    sys.exit(main())
