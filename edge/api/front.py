"""What the routes share: the models, the keys, the metrics, and whether the node still takes work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from edge.admission.decisions import DecisionLog
from edge.admission.policy import DoorReason, Fleet, Mode
from edge.api.auth import KeyStore, RateLimiter
from edge.api.hosts import HostNames
from edge.api.metrics import NodeMetrics
from edge.api.served import Served, ServedTensors
from edge.api.tracing import Tracing, Untraced
from edge.api.turnstile import Turnstile
from edge.engine.port import Engine, EngineStatus
from edge.errors import (
    DoesNotFit,
    EdgeError,
    EngineDown,
    ModelLoading,
    ModelNotFound,
    ModelUnusable,
    NodeDraining,
    Overloaded,
    WrongModel,
)
from edge.fleet.central import Central
from edge.identity.keeper import Keeper
from edge.messages import ModelFacts, Stats
from edge.onnx.messages import Task
from edge.probes.sample import Probes
from edge.residency import Lease, Pool
from edge.telemetry.node import Telemetry


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """What the front needs of the settings."""

    keys_required: bool
    hosts: HostNames
    """Looked at where no keys are."""
    max_body_bytes: int
    body_timeout_s: float
    ttft_slo_s: float
    itl_slo_s: float
    mode: Mode = "best-effort"
    offline: Mode = "best-effort"
    max_wait_s: float = 20.0
    load_wait_s: float = 120.0
    dcgm_names: bool = False


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the engine cannot be asked: in one word, and as the error that a client gets if nobody else answers."""

    reason: DoorReason
    error: EdgeError


_REASONS: dict[type[EdgeError], DoorReason] = {
    ModelNotFound: "model_not_here",
    ModelLoading: "loading",
    Overloaded: "queue_full",
    ModelUnusable: "model_unusable",
    DoesNotFit: "no_memory",
}


_ROUTES = {
    "chat and completion": "/v1/chat/completions or /v1/completions",
    "embedding": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "classification": "/v1/classify",
    "detection": "/v1/detect",
    "tensors": "/v2",
}


def reason_of(error: EdgeError) -> DoorReason:
    """Why a model's engine cannot be asked, in one word."""
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), "engine_down")


class DrainState:
    """Whether the node takes no new work: it shuts down, or the fleet wants it so. Written by the composition root alone."""

    def __init__(self) -> None:
        self.draining = False

    def begin(self) -> None:
        """Take no new work from now on."""
        self.draining = True

    def end(self) -> None:
        """Take new work again."""
        self.draining = False


class Front:
    """One node's front as its routes see it."""

    def __init__(
        self,
        pool: Pool,
        config: FrontConfig,
        keys: KeyStore,
        drain: DrainState,
        fleet: Central | None = None,
        *,
        probes: Probes | None = None,
        telemetry: Telemetry | None = None,
        identity: Keeper | None = None,
    ) -> None:
        self.pool = pool
        self.begun_s = time.monotonic()
        self.fleet = fleet
        self.telemetry = telemetry
        self.identity = identity
        self.config = config
        self.keys = keys
        self.drain = drain
        self.rates = RateLimiter()
        self.turnstile = Turnstile()
        """For what is passed on from the fleet."""
        self.decisions = DecisionLog()
        self.probes = probes
        self.tracing: Tracing = Untraced()
        """Set by the composition root where traces are sent."""
        self.metrics = NodeMetrics(
            pool, self.decisions, fleet, probes, telemetry, identity, dcgm_names=config.dcgm_names
        )

    # --- the main model -----------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine | None:
        """The main model's; None while there is none, in the middle of a swap."""
        return self.pool.roster.main_engine

    @property
    def status(self) -> EngineStatus:
        """Where the main model stands."""
        return self.pool.roster.status(self.pool.roster.main)

    @property
    def facts(self) -> ModelFacts | None:
        """Of the main model."""
        return self.engine.facts if self.engine is not None else None

    @property
    def stats(self) -> Stats | None:
        """Of the main model's engine."""
        return self.engine.stats if self.engine is not None else None

    def unready(self) -> tuple[str, str] | None:
        """(code, sentence) why the node itself takes no work now, None when it does. It is the main model that counts."""
        status = self.status
        if self.drain.draining:
            return "draining", "the node is shutting down, or was told to drain"
        if status.phase == "loading" and self.facts is None:
            return "loading", f"{status.reason} ({status.progress:.0%})"
        if status.phase != "ready":
            return "engine_down", f"{status.phase}: {status.reason}"
        return None

    def covered(self) -> bool:
        """Whether the fleet answers what the main model cannot. Not before that was ready once: a node that never was must not
        pass for a good one, since then a bad update would go on to the next machine."""
        roster, fleet = self.pool.roster, self.fleet
        if fleet is None or self.config.mode != "fleet" or self.drain.draining or not roster.waits(roster.main):
            return False
        view = fleet.view()
        if view.available or view.reason in ("bytes_cap", "cost_cap"):
            return view.available
        # One that is busy is there all the same, and one on trial is well again only when a request has come through.
        return any(state.state != "open" for state in fleet.states())

    # --- any model ----------------------------------------------------------------------------------------------------

    def served(self, model: str | None, lease: Lease | None = None) -> Served:
        """A model of that name (None: the main one) as it can be asked now, with a lease on it: `lease`, or a new one. Raises
        ModelNotFound, ModelLoading, EngineDown, or why it cannot be used."""
        name = self.pool.roster.require(model)
        lease = lease or self.pool.lease(name)
        engine = lease.engine
        if engine.kind == "language":
            facts = engine.facts
            if facts is not None:
                return Served(name, name == self.pool.roster.main, lease, engine, facts)
        raise self._useless(name, lease)

    def served_tensors(self, model: str | None, tasks: Sequence[Task], lease: Lease | None = None) -> ServedTensors:
        """The same of a model for one of these tasks, or if there are none of any that takes tensors. Raises WrongModel too."""
        name = self.pool.roster.require(model)
        lease = lease or self.pool.lease(name)
        engine = lease.engine
        if engine.kind == "tensors":
            facts = engine.facts
            if facts is not None and (facts.task in tasks if tasks else facts.inputs or facts.task == "tensors"):
                return ServedTensors(name, lease, engine, facts)
        raise self._useless(name, lease)

    @staticmethod
    def _useless(name: str, lease: Lease) -> EdgeError:
        """Why this engine does not answer this request. Gives the lease back."""
        lease.release()
        engine, status = lease.engine, lease.engine.status
        if engine.facts is not None:
            task = "chat and completion" if engine.kind == "language" else engine.facts.task
            return WrongModel(f"the model {name!r} is for {task}: ask it by {_ROUTES[task]}", param="model")
        if status.phase == "loading":
            return ModelLoading(f"the model is being loaded ({status.progress:.0%}); try again shortly")
        return EngineDown(f"the engine is {status.phase}: {status.reason}")

    def obstacle(self, model: str | None = None) -> Obstacle | None:
        """Why a model's engine cannot be asked now (None: the main one's)."""
        if self.drain.draining:
            return Obstacle("draining", NodeDraining("the node is shutting down and takes no new work"))
        try:
            with self.served(model) as served:
                served.engine.require_room()
        except EdgeError as error:
            return Obstacle(reason_of(error), error)
        return None

    def shut(self) -> Obstacle | None:
        """Why no request can be answered here, whatever model it names: known before it is read."""
        if self.drain.draining:
            return self.obstacle()
        if self.pool.roster.several:
            return None
        obstacle = self.obstacle()
        return None if obstacle is not None and obstacle.reason == "loading" and self.may_wait(None) else obstacle

    def may_wait(self, model: str | None) -> bool:
        """Whether a request waits for its model to be loaded. Where only answers in time are wanted it does not."""
        name, config = self.pool.roster.find(model), self.config
        strict = config.mode == "strict" or (config.mode == "fleet" and config.offline == "strict")
        return name is not None and not strict and self.pool.roster.waits(name)

    # --- the fleet ----------------------------------------------------------------------------------------------------

    def fleet_name(self, model: str | None) -> str | None:
        """What the fleet is asked for: None for the main model, which each upstream may call as it likes. Raises ModelNotFound if
        the fleet has no such model."""
        name = self.pool.roster.find(model)
        if name == self.pool.roster.main:
            return None
        known = [model] if name is None else [model, *self.pool.roster[name].spec.names]
        found = next((n for n in known if n is not None and self.fleet is not None and self.fleet.knows(n)), None)
        if found is None:
            raise ModelNotFound(f"the fleet has no model {(model or '')[:100]!r}", param="model")
        return found

    def fleet_view(self, model: str | None = None) -> Fleet | None:
        """What the fleet can do now, for a model of that name (None: the main one); None if there is no fleet for it."""
        if self.fleet is None:
            return None
        try:
            return self.fleet.view(self.fleet_name(model))
        except ModelNotFound:
            return None
