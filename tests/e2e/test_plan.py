"""`edge plan`: what it says of a layout is what a node then takes, and what it measures is what a node would say of itself."""

import json
import re
from pathlib import Path

import pytest

from bench.file_server import FileServer, Served
from bench.make_gguf_encoder import write_encoder
from bench.make_onnx import SHAPES
from tests.conftest import RunEdge
from tests.engine.conftest import Q4_0


def test_it_says_what_goes_where_without_loading_the_model(run_edge: RunEdge) -> None:
    done = run_edge("plan", "--memory", "6GiB")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^room +6,144 MiB of main memory \(by --memory\)$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^plan +8 answers at a time, 2,048 tokens each, attention memory in f16", done.stdout, re.MULTILINE
    )
    assert re.search(r"^attention memory \(KV cells\) +40 MiB$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^or ", done.stdout, re.MULTILINE)) == 2
    assert "promise" not in done.stdout


def test_it_looks_at_a_header_alone(run_edge: RunEdge, tmp_path: Path) -> None:
    """The weights may be missing: a file of the right length with nothing behind its header is planned like the whole."""
    hollow = tmp_path / "hollow.gguf"
    with Q4_0.open("rb") as whole, hollow.open("wb") as file:
        file.write(whole.read(400_000))
        file.truncate(Q4_0.stat().st_size)
    plans = [json.loads(run_edge("plan", str(path), "--json").stdout)["plan"] for path in (hollow, Q4_0)]
    assert plans[0]["parts"]["weights"] == plans[1]["parts"]["weights"]
    assert plans[0]["slots"] == plans[1]["slots"] == 8


def test_less_memory_gives_a_smaller_plan_and_too_little_a_reason(run_edge: RunEdge) -> None:
    small = json.loads(run_edge("plan", "--memory", "90MiB", "--json").stdout)
    assert small["plan"]["host_bytes"] <= 90 << 20
    assert small["plan"]["slots"] < 8 or small["plan"]["kv_type"] != "f16"
    fixed = run_edge("plan", "--memory", "90MiB", "--slots", "64", "--context", "2048")
    assert fixed.returncode == 1
    assert "64 slots of 2,048 tokens" in fixed.stderr and "would fit" in fixed.stderr
    nothing = run_edge("plan", "--memory", "20MiB")
    assert nothing.returncode == 1 and "use a smaller model" in nothing.stderr


def test_it_leaves_the_room_that_serve_leaves_for_further_models(run_edge: RunEdge, home: Path) -> None:
    alone = json.loads(run_edge("plan", "--memory", "600MiB", "--json").stdout)
    (home / "edge.toml").write_text(f"[models.other]\nsource = '{Q4_0}'\npinned = true\n")
    beside = json.loads(run_edge("plan", "--memory", "600MiB", "--json").stdout)
    kept = beside["room"]["kept_for_others_bytes"]
    assert kept > Q4_0.stat().st_size and alone["room"]["kept_for_others_bytes"] == 0
    assert beside["room"]["host_bytes"] == alone["room"]["host_bytes"] - kept >= beside["plan"]["host_bytes"]
    assert "are kept for the models under [models]" in run_edge("plan", "--memory", "600MiB").stdout


@pytest.mark.parametrize("size", ["6", "lots", "-1GiB", "0MiB"])
def test_a_memory_size_needs_its_unit(run_edge: RunEdge, size: str) -> None:
    done = run_edge("plan", "--memory", size)
    assert done.returncode == 2 and "--memory" in done.stderr


def test_measured_it_says_what_the_model_can_promise_here(run_edge: RunEdge) -> None:
    wide = {"EDGE_SLO__TTFT_MS": "20000", "EDGE_SLO__ITL_MS": "20000"}  # so that a busy machine meets them too
    done = run_edge("plan", "--measure", **wide)
    assert done.returncode == 0
    assert re.search(
        r"^promise +first token within 20000 ms.* up to [\d,]+ tokens and \d+ answers?", done.stdout, re.MULTILINE
    )
    assert re.search(r"^memory +weights .* attention .*; the engine's process holds ", done.stdout, re.MULTILINE)
    assert re.search(r"^ *8 +[\d.]+$", done.stdout, re.MULTILINE)


def test_as_json_it_bounds_what_is_promised_by_the_times_it_gives(run_edge: RunEdge) -> None:
    flags = ("--set", "slo.ttft_ms=20", "--set", "slo.itl_ms=20")
    plan = json.loads(run_edge("plan", "--json", "--measure", "--slots", "2", *flags).stdout)
    measured = plan["measured"]
    assert plan["plan"]["slots"] == 2
    admitted, answers = measured["admits"]["new_prompt_tokens"], measured["admits"]["answers"]
    assert measured["promises"] == bool(admitted and answers)  # a busy machine may have none
    assert all(entry["ms"] <= 20 for entry in measured["prompt_ms"] if entry["tokens"] <= admitted)
    assert [entry["answers"] for entry in measured["pass_ms"]] == [1, 2]
    assert all(
        (entry["ms"] > 18) == (entry["answers"] > answers) for entry in measured["pass_ms"][max(0, answers - 1) :]
    )
    assert measured["memory"]["weights_bytes"] == plan["plan"]["parts"]["weights"]["host_bytes"]
    assert measured["memory"]["attention_bytes"] == plan["plan"]["parts"]["attention"]["host_bytes"]


def test_a_model_that_is_too_slow_for_the_targets_is_called_that(run_edge: RunEdge) -> None:
    done = run_edge("plan", "--measure", "--set", "slo.ttft_ms=0.01", "--set", "slo.itl_ms=0.01")
    assert "promise  none: this model is too slow here for first token within 0.01 ms" in done.stdout
    assert done.returncode == 0


def test_a_model_that_is_not_there_is_named(run_edge: RunEdge) -> None:
    for arguments in (["--model", "nonesuch"], ["nonesuch"]):
        done = run_edge("plan", *arguments)
        assert done.returncode == 1 and "unknown model 'nonesuch'" in done.stderr


def test_a_model_elsewhere_is_planned_from_its_header(run_edge: RunEdge) -> None:
    with FileServer() as server:
        server.routes["/m.gguf"] = Served(Q4_0.read_bytes() + bytes(40 << 20))  # what is not header is not asked for
        done = run_edge("plan", f"{server.url}/m.gguf", "--json")
        sent_bytes = server.sent_bytes
        measured = run_edge("plan", f"{server.url}/m.gguf", "--measure")
    assert done.returncode == 0, done.stderr
    found, here = json.loads(done.stdout), json.loads(run_edge("plan", "--json").stdout)
    assert found["file"] == f"{server.url}/m.gguf"
    assert found["plan"]["parts"]["weights"] == here["plan"]["parts"]["weights"]
    assert sent_bytes < 3 << 20
    assert measured.returncode == 1 and "edge models pull" in measured.stderr


def test_a_known_model_that_was_not_fetched_is_planned_where_it_lies(run_edge: RunEdge, home: Path) -> None:
    (home / "models").mkdir(parents=True, exist_ok=True)
    with FileServer() as server:
        server.routes["/m.gguf"] = Served(Q4_0.read_bytes())
        (home / "models" / "far.toml").write_text(
            f'name = "far"\ntask = "chat"\nsource = "{server.url}/m.gguf"\nlicence = "Apache-2.0"\n'
            'context_tokens = 2048\ndescription = "elsewhere"\n'
        )
        done = run_edge("plan", "far")
        gone = run_edge("plan", f"{server.url}/other.gguf")
    assert done.returncode == 0 and re.search(r"^model +far: .*http", done.stdout, re.MULTILINE), done.stderr
    assert gone.returncode == 1 and "404" in gone.stderr


def test_an_encoder_elsewhere_is_not_planned_as_if_it_wrote_text(run_edge: RunEdge, tmp_path: Path) -> None:
    with FileServer() as server:
        server.routes["/bert.gguf"] = Served(write_encoder(tmp_path / "bert.gguf", SHAPES["tiny"]).read_bytes())
        done = run_edge("plan", f"{server.url}/bert.gguf")
    assert done.returncode == 1 and "is for embedding: its memory follows from its size" in done.stderr
