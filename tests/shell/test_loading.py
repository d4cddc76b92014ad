"""From settings and files to what engines are told, and to what is foreseen of their memory."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from edge.effective import load
from edge.errors import DoesNotFit, ModelUnusable
from edge.loading import SettingsPlanner, estimated_bytes, room_bytes, specs
from edge.machine import memory_available_bytes
from edge.registry.gguf import read_header
from edge.registry.resolve import Registry
from edge.residency import Spec
from edge.settings import Settings
from tests.engine.conftest import Q4_0, load_of

MIB = 1 << 20


def planner(home: Path, settings: Settings | None = None) -> SettingsPlanner:
    return SettingsPlanner(settings or Settings(), home, Registry([home], home / "verified.json"))


def test_the_nodes_own_model_comes_first_and_further_ones_as_the_file_has_them(home: Path) -> None:
    (home / "edge.toml").write_text(
        "[model]\naliases = ['house']\n[models.b]\nslots = 2\n[models.a]\nsource = '/a.gguf'\n"
    )
    main, b, a = specs(load(home, {}, {}).settings, "edge-builtin")
    assert (main.name, main.names, main.main, main.fixed) == ("edge-builtin", ("edge-builtin", "house"), True, True)
    assert (b.source, b.slots, b.fixed) == ("b", 2, False)
    assert (a.name, a.source) == ("a", "/a.gguf")


def test_a_further_model_promises_nothing_and_stays_behind_one_that_does(home: Path, tiny_gguf: Path) -> None:
    async def fitted(settings: Settings, spec: Spec) -> tuple[bool, bool, int, int]:
        plan = planner(home, settings)
        found = (await plan.fit(await plan.find(spec), 1 << 40)).load
        return found.promises, found.background, found.slots, found.context_tokens

    off = Settings.model_validate({"admission": {"mode": "off"}})
    main = Spec("m", str(tiny_gguf), main=True)
    further = Spec("f", str(tiny_gguf), slots=3, context_tokens=64)
    assert asyncio.run(fitted(Settings(), main)) == (True, False, 8, 0)
    assert asyncio.run(fitted(Settings(), further)) == (False, True, 3, 64)
    assert asyncio.run(fitted(off, further)) == (False, False, 3, 64)


def test_what_does_not_fit_is_said_with_figures(home: Path, tiny_gguf: Path) -> None:
    async def main() -> None:
        plan = planner(home)
        version = await plan.find(Spec("f", str(tiny_gguf)))
        with pytest.raises(DoesNotFit, match="'f' needs 128 MiB, and 100 MiB can be had"):
            await plan.fit(version, 100 * MIB)
        whole, little = await plan.fit(version, 1 << 40), await plan.fit(version, 150 * MIB)
        assert whole.load.cache_bytes == 64 * MIB
        assert whole.bytes - little.bytes == whole.load.cache_bytes - little.load.cache_bytes
        assert little.bytes == 150 * MIB and 21 * MIB < little.load.cache_bytes < 22 * MIB

    asyncio.run(main())


def test_attention_memory_is_foreseen_from_the_header() -> None:
    """5 layers, 2 key/value heads of 64, keys and values in f16."""
    header = read_header(Q4_0)
    assert header.kv_token_bytes == 5 * 2 * (64 + 64) * 2
    small, large = (estimated_bytes(header, load_of(Q4_0, slots=n, context_tokens=1000)) for n in (1, 3))
    assert large - small == 2 * 1000 * header.kv_token_bytes


def test_the_room_is_the_budget_or_what_the_machine_has(home: Path) -> None:
    assert room_bytes(Settings.model_validate({"memory": {"budget_mib": 100}})) == 100 * MIB
    available = memory_available_bytes()
    assert available is not None and 0 < room_bytes(Settings()) < 1.1 * available


def test_a_version_is_another_when_its_file_is(home: Path, tiny_gguf: Path) -> None:
    async def main() -> None:
        plan, path = planner(home), home / "model.gguf"
        spec = Spec("f", str(path))
        with pytest.raises(ModelUnusable, match="no file"):
            await plan.find(spec)
        shutil.copy(tiny_gguf, path)
        first, again = await plan.find(spec), await plan.find(spec)
        assert first.stamp == again.stamp and first.intact
        shutil.copy(tiny_gguf, home / "draft")
        (home / "draft").replace(path)
        second = await plan.find(spec)
        assert second.stamp != first.stamp and second.intact and not first.intact
        path.unlink()
        assert not second.intact

    asyncio.run(main())


def test_behind_a_link_that_is_set_anew_the_old_version_is_still_there(home: Path, tiny_gguf: Path) -> None:
    async def main() -> None:
        plan, link = planner(home), home / "model.gguf"
        for name in ("one.gguf", "two.gguf"):
            shutil.copy(tiny_gguf, home / name)
        os.symlink(home / "one.gguf", link)
        first = await plan.find(Spec("f", str(link)))
        link.unlink()
        os.symlink(home / "two.gguf", link)
        second = await plan.find(Spec("f", str(link)))
        assert first.intact and second.stamp != first.stamp
        assert (await plan.fit(first, 1 << 40)).load.path == str(home / "one.gguf")

    asyncio.run(main())
