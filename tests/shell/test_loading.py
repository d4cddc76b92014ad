"""From settings and files to what engines are told, and to what is foreseen of their memory."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge.effective import load
from edge.errors import DoesNotFit, ModelUnusable
from edge.fitting import Fitter
from edge.loading import SettingsPlanner, specs
from edge.onnx.messages import LoadTensors
from edge.registry.resolve import Registry
from edge.residency import Spec
from edge.settings import Settings
from tests.engine.conftest import Q4_0

MIB = 1 << 20


def planner(
    home: Path, settings: Settings | None = None, room: int = 1 << 40, others: Sequence[Spec] = ()
) -> SettingsPlanner:
    settings = settings or Settings()
    fitter = Fitter(settings, room)
    return SettingsPlanner(settings, home, Registry([home], home / "verified.json"), fitter, others)


def test_the_nodes_own_model_comes_first_and_further_ones_as_the_file_has_them(home: Path) -> None:
    (home / "edge.toml").write_text(
        "[model]\naliases = ['house']\n[models.b]\nslots = 2\n[models.a]\nsource = '/a.gguf'\n"
    )
    main, b, a = specs(load(home, {}, {}).settings, "edge-builtin")
    assert (main.name, main.names, main.main, main.fixed) == ("edge-builtin", ("edge-builtin", "house"), True, True)
    assert (b.source, b.slots, b.fixed) == ("b", 2, False)
    assert (a.name, a.source) == ("a", "/a.gguf")


def test_a_further_model_promises_nothing_and_stays_behind_one_that_does(home: Path) -> None:
    async def fitted(settings: Settings, spec: Spec) -> tuple[bool, bool, int, int]:
        plan = planner(home, settings)
        found = (await plan.fit(await plan.find(spec), 1 << 40)).load
        return found.promises, found.background, found.slots, found.context_tokens

    off = Settings.model_validate({"admission": {"mode": "off"}})
    main = Spec("m", str(Q4_0), main=True)
    further = Spec("f", str(Q4_0), slots=3, context_tokens=64)
    assert asyncio.run(fitted(Settings(), main)) == (True, False, 8, 2048)
    assert asyncio.run(fitted(Settings(), further)) == (False, True, 3, 64)
    assert asyncio.run(fitted(off, further)) == (False, False, 3, 64)


def test_what_does_not_fit_is_said_with_figures(home: Path) -> None:
    async def main() -> None:
        plan = planner(home)
        version = await plan.find(Spec("f", str(Q4_0)))
        with pytest.raises(DoesNotFit, match="MiB of the 20 MiB that --memory allows"):
            await plan.fit(version, 20 * MIB)

    asyncio.run(main())


def test_the_nodes_own_model_leaves_room_for_the_others_if_it_can(home: Path) -> None:
    async def fitted(room: int, others: Sequence[Spec]) -> int:
        plan = planner(home, room=room, others=others)
        main = await plan.find(Spec("m", str(Q4_0), main=True))
        return (await plan.fit(main, room)).bytes

    further = [Spec("f", str(Q4_0)), Spec("gone", "/nowhere.gguf")]
    alone, beside, too_little = (
        asyncio.run(fitted(room * MIB, others)) for room, others in ((600, []), (600, further), (200, further))
    )
    assert beside < 600 * MIB - (256 << 20) < alone + (256 << 20)
    assert 0 < too_little <= 200 * MIB


def test_after_memory_ran_out_smaller_loads_follow_until_there_is_none(home: Path) -> None:
    async def main() -> list[int]:
        plan = planner(home)
        fitted = await plan.fit(await plan.find(Spec("m", str(Q4_0), main=True)), 400 * MIB)
        assert fitted.smaller is not None
        sizes = [fitted.load.slots * fitted.load.context_tokens + fitted.load.cache_bytes]
        while (load := await fitted.smaller()) is not None:
            sizes.append(load.slots * load.context_tokens + load.cache_bytes)
        return sizes

    sizes = asyncio.run(main())
    assert len(sizes) >= 4 and sizes == sorted(sizes, reverse=True)


def test_a_version_is_another_when_its_file_is(home: Path) -> None:
    async def main() -> None:
        plan, path = planner(home), home / "model.gguf"
        spec = Spec("f", str(path))
        with pytest.raises(ModelUnusable, match="no file"):
            await plan.find(spec)
        shutil.copy(Q4_0, path)
        first, again = await plan.find(spec), await plan.find(spec)
        assert first.stamp == again.stamp and first.intact
        shutil.copy(Q4_0, home / "draft")
        (home / "draft").replace(path)
        second = await plan.find(spec)
        assert second.stamp != first.stamp and second.intact and not first.intact
        path.unlink()
        assert not second.intact

    asyncio.run(main())


def test_behind_a_link_that_is_set_anew_the_old_version_is_still_there(home: Path) -> None:
    async def main() -> None:
        plan, link = planner(home), home / "model.gguf"
        for name in ("one.gguf", "two.gguf"):
            shutil.copy(Q4_0, home / name)
        os.symlink(home / "one.gguf", link)
        first = await plan.find(Spec("f", str(link)))
        link.unlink()
        os.symlink(home / "two.gguf", link)
        second = await plan.find(Spec("f", str(link)))
        assert first.intact and second.stamp != first.stamp
        assert (await plan.fit(first, 1 << 40)).load.path == str(home / "one.gguf")

    asyncio.run(main())


def test_an_encoder_is_planned_with_room_for_passes_and_stays_behind_a_model_that_promises(
    home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(bytes(10 * MIB))

    async def fitted(settings: Settings, room: int) -> tuple[LoadTensors, int]:
        plan = planner(home, settings)
        found = await plan.fit(await plan.find(Spec("m", str(file))), room)
        assert isinstance(found.load, LoadTensors)
        return found.load, found.bytes

    load, planned = asyncio.run(fitted(Settings(), 1 << 40))
    assert load.limit_bytes == planned > (10 + 72 + 128) * MIB
    assert (load.background, load.task, load.reading) == (True, "tensors", None)
    off = Settings.model_validate({"admission": {"mode": "off"}, "onnx": {"threads": 3, "provider": "cpu"}})
    load, tight = asyncio.run(fitted(off, 150 * MIB))
    assert (load.background, load.threads, load.provider, tight) == (False, 3, "cpu", 150 * MIB)
    with pytest.raises(DoesNotFit, match="the model 'm' needs"):
        asyncio.run(fitted(Settings(), 100 * MIB))
