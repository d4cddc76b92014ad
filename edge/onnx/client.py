"""The front's half of a tensor child: questions that have one answer each."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal, assert_never, cast

from edge.engine.counts import Counts
from edge.engine.supervised import Supervised
from edge.errors import Overloaded
from edge.messages import Abort, Failed, LoadFailed, Progress
from edge.onnx.messages import (
    Asked,
    Classify,
    Detect,
    Embed,
    Embedded,
    Found,
    FromTensorChild,
    Infer,
    Inferred,
    Kind,
    LoadTensors,
    Rerank,
    Scored,
    Tensor,
    TensorFacts,
    TensorsLoaded,
    TensorStats,
    Text,
    from_tensor_child,
)

log = logging.getLogger(__name__)


class TensorClient(Supervised[LoadTensors, TensorFacts, FromTensorChild]):
    """Owner of one tensor child."""

    kind: Literal["tensors"] = "tensors"
    module = "edge.onnx.worker"

    def _set_up(self) -> None:
        self._stats: TensorStats | None = None

    @property
    def stats(self) -> TensorStats | None:
        """The child's last account of itself, None while none is ready."""
        return self._stats if self._phase == "ready" else None

    @property
    def in_flight(self) -> int:
        """Requests without an answer yet."""
        return len(self._calls)

    def require_room(self) -> None:
        """Raises EngineDown, ModelLoading or Overloaded if a request made now would be refused."""
        self._require_ready()
        if len(self._calls) > self._limits.max_waiting:
            wait_s = self._stats.wait_s if self._stats is not None else 0.0
            raise Overloaded(
                f"{len(self._calls)} requests wait for this model, it takes no more; try again shortly",
                retry_after_s=max(1.0, wait_s),
            )

    async def embed(self, texts: list[Text], kind: Kind, dimensions: int | None) -> Embedded:
        """Vectors of texts. Raises EdgeError."""
        return cast(Embedded, await self._ask(Embed(self._new_id(), texts, kind, dimensions)))

    async def rerank(self, query: str, documents: list[str]) -> Scored:
        """One score for each document. Raises EdgeError."""
        return cast(Scored, await self._ask(Rerank(self._new_id(), query, documents)))

    async def classify(self, texts: list[Text]) -> Scored:
        """A score for each label of each text. Raises EdgeError."""
        return cast(Scored, await self._ask(Classify(self._new_id(), texts)))

    async def detect(self, picture: bytes, threshold: float | None, most: int) -> Found:
        """What is in a picture. Raises EdgeError."""
        return cast(Found, await self._ask(Detect(self._new_id(), picture, threshold, most)))

    async def infer(self, inputs: list[Tensor], outputs: list[str]) -> list[Tensor]:
        """One pass with tensors that were checked. Raises EdgeError."""
        return cast(Inferred, await self._ask(Infer(self._new_id(), inputs, outputs))).outputs

    async def _ask(self, asked: Asked) -> object:
        self.require_room()
        try:
            return await self._call(asked.request_id, asked)
        except asyncio.CancelledError:
            if self._child is not None:
                self._child.say(Abort(asked.request_id))
            raise

    def _say_if_shorter(self, facts: TensorFacts) -> None:
        wanted = self._load.reading.max_tokens if self._load.reading is not None else 0
        if facts.max_tokens < wanted:
            log.warning(
                "there is no memory for texts as long as the model reads; longer ones are refused",
                extra={"event": "shorter_texts", "context_tokens": facts.max_tokens, "trained_tokens": wanted},
            )

    def _decode(self, payload: bytes) -> list[FromTensorChild]:
        return from_tensor_child(payload)

    def _dispatch(self, message: FromTensorChild) -> None:
        match message:
            case Embedded() | Scored() | Found() | Inferred():
                self._answered(message.request_id, message)
            case Failed():
                self._call_failed(message)
            case TensorStats(rows=rows, passes=passes):
                self._stats = message
                self._counted = Counts(texts=rows, passes=passes)
            case Progress():
                self._goes_on(message)
            case TensorsLoaded():
                self._stats = None
                facts = message.facts
                fields = {"event": "onnx_provider", "provider": facts.provider, "threads": facts.threads}
                log.info("tensors run", extra={**fields, "why_not_faster": facts.note} if facts.note else fields)
                self._say_if_shorter(facts)
                self._became_ready(facts, message.seconds, facts.longest_s * facts.most_rows)
            case LoadFailed():
                self._refused(message)
            case _:
                assert_never(message)
