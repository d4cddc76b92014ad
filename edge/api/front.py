"""What the routes share: the engine, the keys, the metrics, and whether the node still takes work."""

from __future__ import annotations

from dataclasses import dataclass

from edge.admission.decisions import DecisionLog
from edge.admission.policy import DoorReason, Fleet, Mode
from edge.api.auth import KeyStore, RateLimiter
from edge.api.metrics import NodeMetrics
from edge.api.translate import Dialect
from edge.api.turnstile import Turnstile
from edge.engine.port import Engine
from edge.errors import EdgeError, EngineDown, ModelLoading, ModelNotFound, NodeDraining, Overloaded, Unavailable
from edge.fleet.central import Central
from edge.messages import ModelFacts
from edge.telemetry.node import Telemetry


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """What the front needs of the settings."""

    model_name: str
    created: int
    """Unix time that /v1/models gives."""
    keys_required: bool
    max_body_bytes: int
    body_timeout_s: float
    write_timeout_s: float
    ttft_slo_s: float
    itl_slo_s: float
    mode: Mode = "best-effort"
    offline: Mode = "best-effort"
    max_wait_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the engine cannot be asked: in one word, and as the error that a client gets if nobody else answers."""

    reason: DoorReason
    error: EdgeError


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
        engine: Engine,
        config: FrontConfig,
        keys: KeyStore,
        drain: DrainState,
        fleet: Central | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.engine = engine
        self.fleet = fleet
        self.telemetry = telemetry
        self.config = config
        self.keys = keys
        self.drain = drain
        self.rates = RateLimiter()
        self.turnstile = Turnstile()
        """For what is passed on from the fleet."""
        self.decisions = DecisionLog()
        self.metrics = NodeMetrics(engine, self.decisions, fleet, telemetry)
        self._dialect: tuple[str, Dialect] | None = None

    def obstacle(self, model: str | None = None) -> Obstacle | None:
        """Why the engine cannot be asked now for that model (None: the one that is served)."""
        if self.drain.draining:
            return Obstacle(
                "draining", NodeDraining("the node is shutting down or was told to drain, and takes no new work")
            )
        try:
            self.require_model(model)
            self.engine.require_room()
            self.facts()
        except ModelNotFound as error:
            return Obstacle("model_not_here", error)
        except ModelLoading as error:
            return Obstacle("loading", error)
        except Overloaded as error:
            return Obstacle("queue_full", error)
        except Unavailable as error:
            return Obstacle("engine_down", error)
        return None

    def fleet_view(self, model: str | None = None) -> Fleet | None:
        """What the fleet can do now, for a model of that name or for the one served here; None if there is no fleet."""
        if self.fleet is None:
            return None
        if model is not None and model != self.config.model_name:
            if not self.fleet.knows(model):
                return None
        else:
            model = None
        return self.fleet.view(model)

    def require_model(self, name: str | None) -> None:
        """Raises ModelNotFound unless `name` is the served model (or None)."""
        if name is not None and name != self.config.model_name:
            raise ModelNotFound(
                f"the model {name[:100]!r} is not served here; this node serves {self.config.model_name!r}",
                param="model",
            )

    def facts(self) -> ModelFacts:
        """Facts of the served model. Raises ModelLoading before the first load is done, EngineDown if it failed."""
        facts = self.engine.facts
        if facts is not None:
            return facts
        status = self.engine.status
        if status.phase == "loading":
            raise ModelLoading(f"the model is being loaded ({status.progress:.0%}); try again shortly")
        raise EngineDown(f"the engine is {status.phase}: {status.reason}")

    def dialect(self) -> Dialect:
        """How the served model writes."""
        template = self.facts().chat_template
        if self._dialect is None or self._dialect[0] != template:
            self._dialect = (template, Dialect.of(template))
        return self._dialect[1]

    def unready(self) -> tuple[str, str] | None:
        """(code, sentence) why the node takes no work now, None when it does."""
        status = self.engine.status
        if self.drain.draining:
            return "draining", "the node is shutting down, or was told to drain"
        if status.phase == "loading" and self.engine.facts is None:
            return "loading", f"{status.reason} ({status.progress:.0%})"
        if status.phase != "ready":
            return "engine_down", f"{status.phase}: {status.reason}"
        return None
