"""Real engines on real files: a child process per test that wants one, and prompts that a node would meet."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge.engine.client import EngineClient
from edge.engine.supervised import EngineLimits
from edge.messages import Finished, Load, Submit, Token
from models.recipe.dialogues import Speaker, dialogue
from models.recipe.render import Renderer

ROOT = Path(__file__).resolve().parents[2]
Q4_0 = ROOT / "models/builtin/edge-builtin-q4_0.gguf"
F16 = ROOT / "models/builtin/edge-builtin-f16.gguf"


def load_of(path: Path, **changes: Any) -> Load:
    defaults: dict[str, Any] = {
        "path": str(path),
        "slots": 8,
        "context_tokens": 2048,
        "pass_tokens": 64,
        "threads": 1,
        "cores": 2,
        "gpu_layers": 0,
        "kv_layout": "streams",
        "kv_type": "f16",
        "flash_attention": "off",
        "heartbeat_s": 1.0,
        "ttft_target_s": 0.05,
        "itl_target_s": 0.05,
        "promises": False,
        "cache_bytes": 64 << 20,
        "kept_bytes": 0,
        "isolate_keys": False,
        "state_directory": "",
    }
    return Load(**{**defaults, **changes})


LIMITS = EngineLimits(max_waiting=512, wedge_timeout_s=120.0, load_timeout_s=600.0, restart_backoff_max_s=2.0)
"""As long as no child of a busy machine needs: what is not about these limits must not meet them."""


class PatientClient(EngineClient):
    """Its child may take as long to end as a disk may take for what it writes then."""

    def _writes_bytes(self) -> int:
        return 1 << 30


@dataclass
class Answer:
    """Everything that came back for one request."""

    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    finished: Finished | None = None


async def collect(client: EngineClient, work: Submit) -> Answer:
    """Run a request to its end. Raises what the stream raises."""
    answer = Answer()
    async for event in client.submit(work):
        if isinstance(event, Token):
            answer.texts[event.index] = answer.texts.get(event.index, "") + event.text
            answer.logprobs.setdefault(event.index, []).extend(event.logprobs)
            if event.finish is not None:
                assert event.index not in answer.finishes, "two finish reasons for one answer"
                answer.finishes[event.index] = event.finish
        elif isinstance(event, Finished):
            answer.finished = event
    return answer


def run_with_engine(
    load: Load, use: Callable[[EngineClient], Coroutine[Any, Any, None]], limits: EngineLimits = LIMITS
) -> None:
    """Start a real child, call `use` with its client, stop the child whatever happens."""

    async def main() -> None:
        client = PatientClient(load, limits)
        await client.start()
        try:
            await client.wait_ready()
            await use(client)
        finally:
            await client.stop()

    asyncio.run(main())


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Fifty rendered prompts of the built-in model's world, none of them from its training."""
    speaker, renderer = Speaker(random.Random(11), evaluation=True), Renderer()
    made = [dialogue(speaker) for _ in range(50)]
    return [renderer.text(d.messages[:-1], d.tools, prompt_only=True) for d in made]
