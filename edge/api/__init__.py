"""The HTTP front: routes, schemas, rendering. Sees engines only through `edge.engine.port`."""

from edge.api.application import build_application
from edge.api.auth import KeyStore
from edge.api.front import DrainState, Front, FrontConfig

__all__ = ["DrainState", "Front", "FrontConfig", "KeyStore", "build_application"]
