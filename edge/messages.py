"""What the front and an engine child say to each other: frozen structs in msgpack, several to a frame.

A frame is a little-endian uint32 length and a msgpack array of tagged structs. Every `Submit` gets exactly one terminal
reply, `Finished` or `Failed`; `edge.engine.client` supplies the `Failed` when the child dies. Token ids are those of
the loaded model's vocabulary. Durations are seconds unless the name says otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from edge.dialects.tools import GrammarSpec

MAX_FRAME_BYTES = 64 * 1024 * 1024
MOST_PIECES = 16_384
"""Of a text of some megabytes they would take more memory than a small machine has."""
EXIT_NO_MEMORY = 71
"""Exit status of a child that could not get the memory it needed."""

FinishReason = Literal["stop", "length"]
KvType = Literal["f16", "q8_0", "q4_0"]
"""Number format of the attention memory."""
Tier = Literal["priority", "default", "flex"]
LateReason = Literal["slots", "slo_itl", "slo_ttft", "flex", "wait"]
"""Why a request is not admitted: no slot; one more answer would slow the others down too much; its first token would be late; it
asked for no promise. `wait`: it was not queued either, since even a late answer would come too late."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of everything that crosses the pipe."""

    @property
    def bulk_bytes(self) -> int:
        """What it takes as a frame, at least; 0 where that is little."""
        return 0


# --- front to child ---------------------------------------------------------------------------------------------------


class ChatPrompt(msgspec.Struct, frozen=True, tag=True):
    """Messages in OpenAI's form, rendered by the child through the model's own template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final: bool = False
    """The last message is the beginning of the answer; the model goes on from its end."""


class TextPrompt(msgspec.Struct, frozen=True, tag=True):
    """Plain text; special tokens in it are not parsed as such."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, tag=True):
    """Token ids, taken as they are."""

    tokens: list[int]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Load(Message, frozen=True):
    """The first message: which model to load, and how."""

    path: str
    slots: int
    context_tokens: int
    """Per slot."""
    pass_tokens: int
    """Most tokens in one forward pass."""
    threads: int
    """CPU threads; 0: measured at load, among 1, cores-1 and cores."""
    cores: int
    """Cores that this process may use."""
    gpu_layers: int
    kv_layout: Literal["streams", "unified"]
    kv_type: KvType
    flash_attention: Literal["auto", "on", "off"]
    heartbeat_s: float
    ttft_target_s: float
    itl_target_s: float
    promises: bool
    """Requests are admitted by prediction; false: all are served alike."""
    cache_bytes: int
    """Most memory for saved prefixes; 0: none are kept."""
    kept_bytes: int
    """Most disk space for prefixes that are kept over a restart; 0: only pinned ones are."""
    isolate_keys: bool
    """Prefixes of one key are never found by another."""
    state_directory: str
    """Where calibration and pinned prefixes outlive the process; empty: nowhere."""
    pinned: list[Prompt] = []
    """Beginnings of prompts that are computed before the first request and never given up."""
    background: bool = False
    """The process takes only the processor time that others leave: another model on this machine has something to keep."""


class Sampling(msgspec.Struct, frozen=True):
    """One request's sampler chain. `temperature` 0 is greedy; `top_k` 0 means none asked for; `seed` None is random."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None


class Submit(Message, frozen=True):
    """One request: `n` answers to one prompt."""

    request_id: int
    prompt: Prompt
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """None: as many as the context holds. An answer that fills the context ends with `length`."""
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """None: no logprobs. 0 to 20: the sampled token's and that many alternatives."""
    grammar: GrammarSpec | None = None
    ignore_eos: bool = False
    visible_tokens: tuple[str, ...] = ()
    """Control tokens whose text belongs to the answer (tool markers of some model families)."""
    echo: bool = False
    """Completions only: the prompt's text comes first in the answer."""
    key: str = ""
    """Name of the API key, for fairness and logs; empty when authentication is off."""
    arrived_s: float = 0.0
    """Monotonic time at which the front had read the request; 0: when the child reads it."""
    tier: Tier = "default"
    """`priority` goes before others that are late too; `flex` is never promised anything and goes last."""
    late: Literal["queue", "decline"] = "queue"
    """If the targets cannot be met: answer it in the gaps, or say so at once (Declined)."""
    max_wait_s: float = 0.0
    """Queued only if its first token is predicted to come within this time; 0: whatever the prediction."""
    cache: bool = True
    """Its prompt may begin with what others computed, and others with what it computes."""


class Abort(Message, frozen=True):
    """The client is gone. The terminal reply still comes (Failed with code `cancelled`)."""

    request_id: int


class Tokenize(Message, frozen=True):
    """Ask for a prompt's tokens, special tokens added as generation would add them if `add_special`."""

    request_id: int
    prompt: Prompt
    add_special: bool = True
    pieces: bool = False
    """Their bytes are wanted too, of MOST_PIECES at most."""


class Detokenize(Message, frozen=True):
    """Ask for the text of tokens."""

    request_id: int
    tokens: list[int]


class ClocksChanged(Message, frozen=True):
    """The machine began to slow down for heat or power, or runs freely again: what passes took before says little of the next."""


class Quit(Message, frozen=True):
    """End the child's process in good order."""


# --- front to measuring child, and back -------------------------------------------------------------------------------


class MeasureModel(Message, frozen=True):
    """Which model to look at."""

    path: str
    cores: int
    gpu_layers: int


class MeasureLayout(Message, frozen=True):
    """A layout to be tried; as in `Load`."""

    slots: int
    context_tokens: int
    pass_tokens: int
    kv_type: KvType
    unified: bool
    flash_attention: Literal["auto", "on", "off"]


class Measured(Message, frozen=True):
    """What every layout of a model takes. Sizes in bytes."""

    process_bytes: int
    """The process before it knows a model."""
    tables_bytes: int
    """Vocabulary, tables of grammars."""
    weights_bytes: int
    train_context_tokens: int
    layers: int
    """Those that can be offloaded: the repeating ones and the output's."""
    offloads: bool
    """Whether this build of the library can use a device."""


class LaidOut(Message, frozen=True):
    """What one layout takes. Buffers by device, as the library names them. Sizes in bytes."""

    cells_bytes: int
    compute_bytes: dict[str, int]
    output_bytes: dict[str, int]


class MeasureFailed(Message, frozen=True):
    """The model, or this layout of it, cannot be had."""

    code: str
    message: str


# --- child to front ---------------------------------------------------------------------------------------------------


class Progress(Message, frozen=True):
    """Loading: fraction 0..1 of `stage`."""

    stage: str
    fraction: float


class ModelFacts(msgspec.Struct, frozen=True):
    """What was loaded. Sizes in bytes."""

    name: str
    description: str
    digest: str
    """First 16 hex digits of SHA-256 over the file's size, head and tail: tells files apart, proves nothing."""
    parameters: int
    model_bytes: int
    vocabulary: int
    context_tokens: int
    """Longest prompt plus answer of one request."""
    train_context_tokens: int
    slots: int
    threads: int
    """CPU threads of a decode step."""
    prefill_threads: int
    device: str
    kv_bytes: int
    compute_bytes: int
    admits_tokens: int
    """Longest new prompt that an idle node answers within the TTFT target; as measured at load, `Stats` has it as it is now."""
    admits_streams: int
    """Answers that can run at a time, half-way through their context, within the ITL target; likewise."""
    prompt_s: list[tuple[int, float]]
    """(new tokens, time until an idle engine has computed them): as predicted, on the safe side."""
    pass_s: list[tuple[int, float]]
    """(answers half-way through their context, time of the pass that gives each its next token): as predicted."""
    caches_prefixes: bool
    """False where this model's memory cannot be cut or copied: every prompt is computed whole."""
    chat_template: str
    """Source of the template in use; the front derives tool format and reasoning tags from it."""
    library: str
    """Version and system line of the native library."""


class Loaded(Message, frozen=True):
    """The model answers: a real forward pass has succeeded."""

    facts: ModelFacts
    seconds: float
    longest_step_s: float
    """What the longest step of this engine takes, measured on a warm context: slow is not wedged."""


class LoadFailed(Message, frozen=True):
    """The model cannot be loaded; the child ends after this."""

    code: str
    message: str


class Outlook(msgspec.Struct, frozen=True):
    """What the engine foresaw for a request when it arrived. Times count from then."""

    admitted: bool
    """Its tokens come within the targets; false: in the gaps that others leave, if at all."""
    reason: LateReason | Literal[""]
    """Why it is not admitted; empty where nothing is promised to anybody."""
    ttft_s: float
    """Until its first token."""
    cached_tokens: int


class Offer(Message, frozen=True):
    """The request is understood, fits, and waits for a slot or runs."""

    request_id: int
    prompt_tokens: int
    reasoning_open: bool
    """The rendered prompt ended inside the model's reasoning tags."""
    outlook: Outlook


class Declined(Message, frozen=True):
    """Terminal: it would not meet the targets, or even come too late for those who do not ask for them."""

    request_id: int
    prompt_tokens: int
    outlook: Outlook
    """`ttft_s`: of a late answer."""
    hopeless: bool
    """It would not be admitted on an idle engine either."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """Natural logarithm of one sampled token's probability, and the most likely alternatives, best first."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class Token(Message, frozen=True):
    """New text of one answer. `text` may hold several tokens' text, and is empty while text is held back."""

    request_id: int
    index: int
    text: str
    tokens: int
    """How many generated tokens this message accounts for."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


class Timing(msgspec.Struct, frozen=True):
    """Where the time of one request went, as the child saw it."""

    queue_s: float
    """Submit read to first token of the prompt in a step."""
    prefill_s: float
    """From there to the first sampled token."""
    decode_s: float
    """From there to the last sampled token."""


class FirstToken(Message, frozen=True):
    """Sent once per request, just before its first `Token`: its queue and prefill times are known."""

    request_id: int
    timing: Timing


class Finished(Message, frozen=True):
    """Terminal: every answer of the request has its finish reason."""

    request_id: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    timing: Timing


class Failed(Message, frozen=True):
    """Terminal: the request failed. `code` is one of `edge.errors`, or `cancelled` after an Abort."""

    request_id: int
    code: str
    message: str
    param: str | None = None


class Tokenized(Message, frozen=True):
    """Answer to Tokenize."""

    request_id: int
    tokens: list[int]
    pieces: list[bytes]
    """Empty unless they were wanted."""


class Detokenized(Message, frozen=True):
    """Answer to Detokenize."""

    request_id: int
    text: str


class Stats(Message, frozen=True):
    """Sent by the engine's loop itself (never by its reader thread) about once a second: its silence means a wedge."""

    running: int
    waiting: int
    slots: int
    cells_used: int
    """Held by running answers."""
    cells: int
    cache_bytes: int
    cache_hits: int
    """Requests whose prompt began with known cells."""
    cache_evictions: int
    cached_tokens: int
    """Prompt tokens that were not computed, of all requests."""
    late_ttft_s: float
    """Until the first token of a short prompt that came now and was not admitted."""
    admits: bool
    """A short prompt that came now would be admitted."""
    admits_tokens: int
    """Longest new prompt that would be admitted if nothing else ran, as passes are predicted now."""
    admits_streams: int
    """Answers that could run at a time, half-way through their context, likewise."""
    prefill_tokens: int
    decode_tokens: int
    steps: int
    step_p50_s: float
    step_p99_s: float
    forward_age_s: float
    """Seconds since the last successful forward pass; when idle the loop makes one every `heartbeat_s`."""
    resident_bytes: int


ToChild = Load | Submit | Abort | Tokenize | Detokenize | ClocksChanged | Quit
ToFront = (
    Progress
    | Loaded
    | LoadFailed
    | Offer
    | Declined
    | FirstToken
    | Token
    | Finished
    | Failed
    | Tokenized
    | Detokenized
    | Stats
)

FromMeasure = Measured | LaidOut | MeasureFailed

_LENGTH = struct.Struct("<I")
_AROUND_BULK_BYTES = 1 << 12
_encoder = msgspec.msgpack.Encoder()
_to_child = msgspec.msgpack.Decoder(list[ToChild])
_to_front = msgspec.msgpack.Decoder(list[ToFront])
_to_measure = msgspec.msgpack.Decoder(list[MeasureModel | MeasureLayout])
_from_measure = msgspec.msgpack.Decoder(list[FromMeasure])


class FrameTooLarge(ValueError):
    """A frame over MAX_FRAME_BYTES: the peer is broken, the connection cannot be kept."""


def frame(*messages: Message) -> bytes | bytearray:
    """Encode messages as one frame. Raises FrameTooLarge, MemoryError.

    The encoder ends the process where it cannot have memory to grow, so that it is given all it needs before: of a bytearray,
    Python says that there is no room for it.
    """
    bulk_bytes = sum([message.bulk_bytes for message in messages])
    if not bulk_bytes:
        payload = _encoder.encode(messages)
        if len(payload) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"frame of {len(payload)} bytes")
        return _LENGTH.pack(len(payload)) + payload
    if bulk_bytes > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"frame of {bulk_bytes} bytes")
    whole = bytearray(_LENGTH.size + bulk_bytes + _AROUND_BULK_BYTES)
    _encoder.encode_into(messages, whole, _LENGTH.size)
    size = len(whole) - _LENGTH.size
    if size > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"frame of {size} bytes")
    _LENGTH.pack_into(whole, 0, size)
    return whole


class FrameReader:
    """Cuts a byte stream into frames. One owner feeds it; frames come out in order."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Yield the payload of each frame that is complete. Raises FrameTooLarge."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                raise FrameTooLarge(f"frame of {size} bytes")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield payload


def to_child(payload: bytes) -> list[ToChild]:
    """Decode a frame sent by the front. Raises msgspec.DecodeError."""
    return _to_child.decode(payload)


def to_front(payload: bytes) -> list[ToFront]:
    """Decode a frame sent by a child. Raises msgspec.DecodeError."""
    return _to_front.decode(payload)


def to_measure(payload: bytes) -> list[MeasureModel | MeasureLayout]:
    """Decode a frame sent to a measuring child. Raises msgspec.DecodeError."""
    return _to_measure.decode(payload)


def from_measure(payload: bytes) -> list[FromMeasure]:
    """Decode a frame sent by a measuring child. Raises msgspec.DecodeError."""
    return _from_measure.decode(payload)
