"""A hand-written planner behind `edge.residency.Planner`: files that do not exist, of any size and version."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.errors import DoesNotFit, EdgeError
from edge.messages import Load
from edge.registry.gguf import GgufHeader, read_header
from edge.registry.resolve import ResolvedModel
from edge.residency import Fitted, Spec, Version

MIB = 1 << 20
BUILTIN = Path(__file__).resolve().parents[2] / "models/builtin/edge-builtin-q4_0.gguf"


def header() -> GgufHeader:
    """Of no file."""
    return replace(read_header(BUILTIN), path=Path("/none"), name="fake")


def load_of(path: str) -> Load:
    """A load that says no more than which file it is."""
    return Load(
        path, 2, 128, 64, 1, 1, 0, "streams", "f16", "off", 1.0, 0.05, 0.05, False, 0, 0, False, ""
    )  # fmt: skip


@dataclass
class FakePlanner:
    """`sizes`: bytes by model, else one MiB. `versions`: of the file of each model. `broken`: why there is none."""

    sizes: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    broken: dict[str, EdgeError] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """Stamps of files that are not what they were."""

    async def find(self, spec: Spec) -> Version:
        await asyncio.sleep(0)
        if spec.name in self.broken:
            raise self.broken[spec.name]
        stamp = f"{spec.name}-{self.versions.get(spec.name, 1)}"
        return FakeVersion(spec, ResolvedModel(spec.name, Path(stamp), header(), None), stamp, 1_700_000_000, self)

    async def fit(self, version: Version, room_bytes: int) -> Fitted:
        await asyncio.sleep(0)
        needed = self.sizes.get(version.spec.name, MIB)
        if needed > room_bytes:
            raise DoesNotFit.of(version.spec.name, needed, room_bytes)
        return Fitted(load_of(version.stamp), needed)


@dataclass(frozen=True, slots=True)
class FakeVersion(Version):
    """A version whose file the planner has."""

    planner: FakePlanner

    @property
    def intact(self) -> bool:
        return self.stamp not in self.planner.gone
