"""`edge plan`: what it says is what a node on this machine would say of itself."""

import json
import re

from tests.conftest import RunEdge


def test_it_says_what_the_model_can_promise_here_and_serves_nothing(run_edge: RunEdge) -> None:
    done = run_edge("plan")
    assert done.returncode == 0
    assert re.search(
        r"^promise +first token within 50 ms.* up to [\d,]+ tokens and \d+ answers?", done.stdout, re.MULTILINE
    )
    assert re.search(r"^memory +weights .* attention .*; the engine's process holds ", done.stdout, re.MULTILINE)
    assert re.search(r"^ *8 +[\d.]+$", done.stdout, re.MULTILINE)


def test_as_json_it_bounds_what_is_promised_by_the_times_it_gives(run_edge: RunEdge) -> None:
    done = run_edge("plan", "--json", "--set", "engine.slots=2", "--set", "slo.ttft_ms=20", "--set", "slo.itl_ms=20")
    plan = json.loads(done.stdout)
    assert plan["promises"] and plan["slots"] == 2
    admitted = plan["admits"]["new_prompt_tokens"]
    assert all(entry["ms"] <= 20 for entry in plan["prompt_ms"] if entry["tokens"] <= admitted)
    assert [entry["answers"] for entry in plan["pass_ms"]] == [1, 2]
    assert plan["memory"]["engine_process_bytes"] > plan["memory"]["weights_bytes"] > 0


def test_a_model_that_is_too_slow_for_the_targets_is_called_that(run_edge: RunEdge) -> None:
    done = run_edge("plan", "--set", "slo.ttft_ms=0.01", "--set", "slo.itl_ms=0.01")
    assert "promise  none: this model is too slow here for first token within 0.01 ms" in done.stdout
    assert done.returncode == 0


def test_a_model_that_is_not_there_is_named(run_edge: RunEdge) -> None:
    done = run_edge("plan", "--model", "nonesuch")
    assert done.returncode == 1 and "unknown model 'nonesuch'" in done.stderr
