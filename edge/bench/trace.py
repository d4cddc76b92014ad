"""Traces: arrivals and prompts from a file, one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.bench.workload import Job
from edge.errors import ConfigurationError

_MOST_BYTES = 256 << 20
_LONGEST_S = 86_400.0
_MOST_TOKENS = 1_000_000

Api = Literal["chat", "completions"]


class _Line(BaseModel):
    """`messages` or `prompt`, not both; without `max_tokens` the run's --output-tokens count."""

    model_config = ConfigDict(extra="forbid", strict=True)

    at_s: Annotated[float, Field(ge=0, le=_LONGEST_S, allow_inf_nan=False)]
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> _Line:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("it needs either `messages` or `prompt`")
        return self


def read_trace(path: Path, *, api: Api, output_tokens: int, most_requests: int) -> list[Job]:
    """The jobs of a trace. Raises ConfigurationError, which names the line at fault."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigurationError(f"{path} is over {_MOST_BYTES >> 20} MiB; cut the trace into parts")
        lines = path.read_text("utf-8").split("\n")  # not splitlines: JSON strings may hold other line ends
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; check --trace") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start}); check --trace") from None
    jobs: list[Job] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(jobs) == most_requests:
            raise ConfigurationError(
                f"{path} has more than {most_requests} requests; raise --max-requests or cut the trace into parts"
            )
        job = _job(line, f"{path} line {number}", api, output_tokens)
        if jobs and job.at_s < jobs[-1].at_s:
            raise ConfigurationError(f"{path} line {number}: at_s goes backwards; sort the trace by at_s")
        jobs.append(job)
    if not jobs:
        raise ConfigurationError(f"{path} holds no request; each line is one, such as " + _EXAMPLE)
    return jobs


_EXAMPLE = '{"at_s": 0.5, "prompt": "Hello", "max_tokens": 32}'


def _job(text: str, where: str, api: Api, output_tokens: int) -> Job:
    try:
        line = _Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigurationError(f"{where}: {f'{field}: ' if field else ''}{why}; a line is like {_EXAMPLE}") from None
    max_tokens = line.max_tokens or output_tokens
    if line.messages is not None:
        if api == "completions":
            raise ConfigurationError(f"{where} has `messages`, which --api completions cannot send; use --api chat")
        return Job(line.at_s, max_tokens, messages=tuple(line.messages))
    assert line.prompt is not None
    return Job(line.at_s, max_tokens, messages=({"role": "user", "content": line.prompt},), prompt=line.prompt)
