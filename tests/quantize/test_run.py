"""`edge quantize` on real files: what is written, what it costs, what is refused, and what is left behind when it ends early."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from bench.make_gguf import SHAPES, write_model
from edge.errors import ConfigurationError, EdgeError, EngineFault, ModelUnusable
from edge.quantize.kinds import KINDS
from edge.quantize.report import Report
from edge.quantize.run import Wish, quantize
from edge.registry.gguf import read_header
from edge.registry.manifest import Manifest, read_manifest
from tests.conftest import RunEdge

from .conftest import BUILTIN, never_whole, workers

TOKENS = 2048


def quiet(stage: str, share: float) -> None:
    pass


def written(source: Path, target: Path, kind: str, **rest: object) -> Report:
    wish = Wish(source, target, kind, most_tokens=TOKENS, **rest)  # type: ignore[arg-type]
    return quantize(wish, {}, quiet)


def left_behind(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, shaped: dict[str, Path]) -> dict[tuple[str, str], Report]:
    """Of the mixture of experts: every format, with and without importance where that makes a difference."""
    directory = tmp_path_factory.mktemp("reports")
    ways = [(k.name, i) for k in KINDS.values() for i in (("auto", "off") if k.takes_importance else ("auto",))]
    return {
        (kind, importance): written(
            shaped["tinymoe"], directory / f"{kind}-{importance}.gguf", kind, importance=importance
        )
        for kind, importance in ways
    }


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("q4_0", {"q4_0", "q6_k", "f32"}),
        ("q4_k_m", {"q4_k", "q6_k", "f32"}),
        ("iq4_xs", {"iq4_xs", "q6_k", "f32"}),
        ("q8_0", {"q8_0", "f32"}),
        ("mxfp4", {"mxfp4", "q8_0", "f32"}),
    ],
)
def test_every_format_is_what_the_file_holds(
    reports: dict[tuple[str, str], Report], kind: str, types: set[str]
) -> None:
    result = reports[kind, "auto"].result
    found = [tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(result.path).tensors]
    assert set(result.tensors) == set(found) == types
    assert {name: found.count(name) for name in types} == result.tensors
    header = read_header(Path(result.path))
    assert result.bytes == Path(result.path).stat().st_size
    assert result.bits_per_weight == pytest.approx(8 * sum(header.tensor_bytes.values()) / header.parameters, abs=1e-3)


def test_mxfp4_is_made_of_the_experts(reports: dict[tuple[str, str], Report]) -> None:
    tensors = gguf.GGUFReader(reports["mxfp4", "auto"].result.path).tensors
    assert {t.name for t in tensors if t.tensor_type.name == "MXFP4"} == {
        f"blk.{layer}.{part}_exps.weight" for layer in range(2) for part in ("ffn_gate", "ffn_up", "ffn_down")
    }


def test_fewer_bits_are_farther_from_the_source(reports: dict[tuple[str, str], Report]) -> None:
    eight, four = reports["q8_0", "auto"], reports["q4_0", "auto"]
    assert eight.divergence and four.divergence
    assert 0 < eight.divergence.kl_mean < four.divergence.kl_mean / 3
    assert eight.divergence.top1_agreement > four.divergence.top1_agreement
    assert four.result.bytes < eight.result.bytes < eight.source.bytes


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS.values() if kind.takes_importance])
def test_importance_brings_the_result_nearer(reports: dict[tuple[str, str], Report], kind: str) -> None:
    with_it, without_it = reports[kind, "auto"], reports[kind, "off"]
    assert with_it.importance and without_it.importance is None
    assert with_it.importance.tensors == 2 * 8  # of each layer: four of the attention, the router, three of all experts
    assert with_it.divergence and without_it.divergence
    assert with_it.divergence.kl_mean < without_it.divergence.kl_mean
    assert with_it.result.bytes == without_it.result.bytes


@pytest.mark.parametrize("kind", ["q8_0", "mxfp4"])
def test_formats_that_do_not_look_at_importance_do_without(reports: dict[tuple[str, str], Report], kind: str) -> None:
    assert reports[kind, "auto"].importance is None


def test_rows_that_do_not_fit_are_reported(tmp_path: Path, shaped: dict[str, Path]) -> None:
    report = written(shaped["tinynarrow"], tmp_path / "x.gguf", "q4_k_m", report=False)
    kinds = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(report.result.path).tensors}
    assert len(report.fell_back) == 2 * 7  # every matrix of the layers; the embedding has its own rule
    for fell in report.fell_back:
        assert fell.row_weights in (192, 320)
        assert kinds[fell.tensor] == fell.got != fell.wanted
    assert report.divergence is None and report.accuracy is None


def test_the_built_in_model_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    report = written(BUILTIN, tmp_path / "q4.gguf", "q4_0", importance="off", report=False)
    shipped = BUILTIN.with_name("edge-builtin-q4_0.gguf")
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (shipped, Path(report.result.path))}
    assert len(digests) == 1


@pytest.fixture(scope="module")
def few_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the built-in model with twelve of its cases."""
    directory = tmp_path_factory.mktemp("cases")
    whole = json.loads(BUILTIN.with_name("cases.json").read_text("utf-8"))
    (directory / "cases.json").write_text(json.dumps({**whole, "cases": whole["cases"][:12]}))
    shipped = BUILTIN.parent.parent / "builtin.toml"
    (directory / "m.toml").write_text(shipped.read_text("utf-8").replace("builtin/cases.json", "cases.json"))
    return directory / "m.toml"


def test_the_task_of_a_manifest_is_counted_for_both_files(tmp_path: Path, few_cases: Path) -> None:
    report = written(BUILTIN, tmp_path / "q8.gguf", "q8_0", manifest=few_cases, text=_pages(tmp_path))
    assert report.accuracy and report.divergence
    assert report.accuracy.all.cases == 12 == sum(score.cases for score in report.accuracy.groups.values())
    assert min(report.accuracy.all.source_right, report.accuracy.all.result_right) >= 10
    assert report.divergence.text == "pages.txt"


def test_a_model_s_own_manifest_is_found_by_its_name(tmp_path: Path, few_cases: Path) -> None:
    known: dict[str, tuple[Manifest, Path]] = {"edge-builtin": (read_manifest(few_cases), few_cases)}
    wish = Wish(BUILTIN, tmp_path / "q4.gguf", "q4_0", most_tokens=TOKENS)
    report = quantize(wish, known, quiet)
    assert report.accuracy and report.accuracy.all.cases == 12
    assert report.divergence and "dialogues" in report.divergence.text
    assert report.importance and "package" in report.importance.text


def _pages(directory: Path, name: str = "pages.txt", lines: int = 200) -> Path:
    path = directory / name
    path.write_text(
        "".join(f"The pump with number {n} was read at {n % 24} o'clock and ran well.\n" for n in range(lines))
    )
    return path


def test_one_text_serves_both_ends_in_halves(tmp_path: Path) -> None:
    report = written(BUILTIN, tmp_path / "q4.gguf", "q4_0", text=_pages(tmp_path))
    assert report.importance and report.importance.text == "half of pages.txt"
    assert report.divergence and report.divergence.text == "the other half of pages.txt"


def test_the_text_to_calibrate_with_may_not_judge(tmp_path: Path) -> None:
    pages = _pages(tmp_path)
    with pytest.raises(ConfigurationError, match="is also in"):
        written(BUILTIN, tmp_path / "q4.gguf", "q4_0", text=pages, calibration=pages)
    assert left_behind(tmp_path) == ["pages.txt"]


@pytest.mark.parametrize("kind", ["mxfp4"])
def test_experts_formats_are_refused_without_experts(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelUnusable, match="no experts"):
        written(BUILTIN, tmp_path / "x.gguf", kind)


def test_a_quantized_source_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    source = BUILTIN.with_name("edge-builtin-q4_0.gguf")
    with pytest.raises(ModelUnusable, match="quantized already"):
        written(source, tmp_path / "x.gguf", "q8_0")
    report = written(source, tmp_path / "x.gguf", "q8_0", allow_requantize=True, report=False)
    assert set(report.result.tensors) == {"q8_0", "f32"}


def test_nothing_is_overwritten_unless_it_is_wanted(tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_text("precious")
    with pytest.raises(ConfigurationError, match="--force"):
        written(BUILTIN, target, "q8_0")
    assert target.read_text() == "precious"
    written(BUILTIN, target, "q8_0", force=True, report=False)
    assert read_header(target).quantization == "Q8_0"


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(BUILTIN.read_bytes())
    os.link(source, tmp_path / "same.gguf")
    (tmp_path / "link.gguf").symlink_to(source)
    for name in ("source.gguf", "same.gguf", "link.gguf"):
        with pytest.raises(ConfigurationError, match="the source itself"):
            written(source, tmp_path / name, "q8_0", force=True)
    assert source.read_bytes() == BUILTIN.read_bytes()


def test_places_that_cannot_be_written_to_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a directory"):
        written(BUILTIN, tmp_path, "q8_0")
    with pytest.raises(ConfigurationError, match="no directory"):
        written(BUILTIN, tmp_path / "none" / "x.gguf", "q8_0")


def test_a_later_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    second.write_bytes(BUILTIN.read_bytes())
    with pytest.raises(ConfigurationError, match="name the first part"):
        written(second, tmp_path / "x.gguf", "q8_0")
    second.rename(first)
    with pytest.raises(ConfigurationError, match="is not beside it"):
        written(first, tmp_path / "x.gguf", "q8_0")


def test_a_split_model_becomes_one_file(tmp_path: Path, shaped: dict[str, Path]) -> None:
    write_model(tmp_path / "m.gguf", SHAPES["tinynarrow"], kind="f16", tensors_a_part=8)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3
    report = written(parts[0], tmp_path / "x.gguf", "q4_0")
    whole = written(shaped["tinynarrow"], tmp_path / "y.gguf", "q4_0")
    assert report.source.bytes == sum(part.stat().st_size for part in parts)
    assert report.result.tensors == whole.result.tensors
    assert report.divergence == whole.divergence


def test_what_libllama_says_of_a_model_is_passed_on(tmp_path: Path) -> None:
    strange = tmp_path / "strange.gguf"
    data = BUILTIN.read_bytes()
    named = b"general.architecture" + (8).to_bytes(4, "little") + (5).to_bytes(8, "little")
    assert data.count(named + b"llama") == 1
    strange.write_bytes(data.replace(named + b"llama", named + b"llamo").replace(b"llama.", b"llamo."))
    with pytest.raises(ModelUnusable, match="unknown model architecture: 'llamo'"):
        written(strange, tmp_path / "x.gguf", "q8_0")
    assert left_behind(tmp_path) == ["strange.gguf"]


def _at(stage: str, deed: Callable[[], None]) -> Callable[[str, float], None]:
    """Do something when the work reaches a stage."""

    def on_step(reached: str, share: float) -> None:
        if reached == stage:
            deed()

    return on_step


def _kill_child(number: int) -> None:
    (child,) = workers()
    child.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_a_child_that_dies_leaves_no_half_file(tmp_path: Path, number: int) -> None:
    target = never_whole(tmp_path / "x.gguf")
    target.write_text("precious")
    wish = Wish(BUILTIN, target, "iq4_xs", importance="off", report=False, force=True)
    with pytest.raises(EngineFault, match=f"killed by signal {int(number)} while"):
        quantize(wish, {}, _at("looking at the source", lambda: _kill_child(number)))
    assert left_behind(tmp_path) == ["x.gguf"] and target.read_text() == "precious"


def test_a_child_that_dies_over_the_report_leaves_the_whole_file(tmp_path: Path) -> None:
    wish = Wish(BUILTIN, tmp_path / "x.gguf", "q8_0", most_tokens=65_536, text=_pages(tmp_path, lines=6000))
    with pytest.raises(EngineFault, match="is written and whole, but the report failed"):
        quantize(wish, {}, _at("comparing", lambda: _kill_child(signal.SIGKILL)))
    assert left_behind(tmp_path) == ["pages.txt", "x.gguf"]
    assert read_header(tmp_path / "x.gguf").quantization == "Q8_0"


def test_an_interruption_leaves_no_half_file_and_no_child(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    wish = Wish(BUILTIN, tmp_path / "x.gguf", "iq4_xs", importance="off")
    with pytest.raises(KeyboardInterrupt):
        quantize(wish, {}, _at("writing", interrupt))
    assert workers() == [] and [name for name in left_behind(tmp_path) if name != "x.gguf"] == []


def test_a_full_disk_is_called_so_and_leaves_what_was_there(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_text("precious")
    limited = f"ulimit -f 1000; exec {sys.executable} -m edge quantize {BUILTIN} {target} --to q8_0 --force --no-report"
    done = subprocess.run(
        ["bash", "-c", limited], env={**os.environ, "EDGE_HOME": str(home)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 78 and "the disk is full" in done.stderr
    assert left_behind(tmp_path) == ["home", "x.gguf"] and target.read_text() == "precious"


def test_a_text_that_is_too_short_to_measure_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="too short"):
        written(BUILTIN, tmp_path / "x.gguf", "q8_0", text=_pages(tmp_path, lines=8))


def test_the_command_says_what_it_cost(run_edge: RunEdge, tmp_path: Path, few_cases: Path) -> None:
    target = str(tmp_path / "q4.gguf")
    options = ["--to", "q4_0", "--manifest", str(few_cases), "--tokens", "1024"]
    done = run_edge("quantize", str(BUILTIN), target, *options)
    assert done.returncode == 0, done.stderr
    for words in ("bits a weight", "35 q4_0", "KL, nats", "same top token", "of 12 right", "tool calls"):
        assert words in done.stdout
    told = done.stderr.splitlines()  # no terminal: a line for each stage
    assert "comparing ..." in told and "answering the task's cases ..." in told and len(told) == len(set(told))
    again = run_edge("quantize", str(BUILTIN), target, *options)
    assert (again.returncode, "--force" in again.stderr) == (78, True)
    found = json.loads(run_edge("quantize", str(BUILTIN), target, *options, "--force", "--json").stdout)
    assert (found["format"], found["version"], found["kind"]) == ("edge-quantize", 1, "q4_0")
    assert found["accuracy"]["all"]["cases"] == 12
