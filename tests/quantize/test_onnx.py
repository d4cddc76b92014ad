"""`edge quantize` on real ONNX models: what is written, what it costs, what is refused, and what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from bench.make_onnx import SHAPES, write_encoder
from edge.errors import ConfigurationError, EngineFault, ModelUnusable
from edge.quantize.kinds import KINDS, ONNX_KINDS
from edge.quantize.onnx.job import require_packages
from edge.quantize.report import Report
from edge.quantize.run import Wish, quantize
from tests.conftest import RunEdge

from .conftest import BUILTIN, never_whole, workers

MATRICES = 3 + 2 * 6 + 1  # tables of words, places and types; six in each of two layers; the pooler's


def quiet(stage: str, share: float) -> None:
    pass


def written(source: Path, target: Path, kind: str, **rest: Any) -> Report:
    return quantize(Wish(source, target, kind, **rest), {}, quiet)


def left_behind(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """Tiny encoders by their head."""
    directory = tmp_path_factory.mktemp("encoders")
    return {
        head: write_encoder(directory / str(head), SHAPES["tiny"], head)
        for head in (None, "reranker", "classifier")  # type: ignore[arg-type]
    }


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, sources: dict[str | None, Path]) -> dict[str, Report]:
    """Of the encoder, by format."""
    directory = tmp_path_factory.mktemp("onnx-reports")
    return {kind: written(sources[None], directory / f"{kind}.onnx", kind) for kind in ONNX_KINDS}


def mean_states(path: Path, tokenizer: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """By nothing of what is tested here."""
    words = Tokenizer.from_file(str(tokenizer))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for text in texts:
        ids = np.array([words.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        found.append(session.run(["last_hidden_state"], feeds)[0][0].mean(axis=0))
    return np.array(found)


@pytest.mark.parametrize(
    ("kind", "number", "nodes"),
    [
        ("int8-onnx", "int8", {"MatMulInteger": 13, "DynamicQuantizeLinear": 9}),
        ("int4-onnx", "int4", {"MatMulNBits": 13, "GatherBlockQuantized": 3}),
        ("fp8-onnx", "fp8", {"QuantizeLinear": 9, "DequantizeLinear": 9 + MATRICES}),
    ],
)
def test_every_matrix_is_written_in_the_format(
    reports: dict[str, Report], kind: str, number: str, nodes: dict[str, int]
) -> None:
    report = reports[kind]
    assert report.source.tensors == {"f32": MATRICES} and report.result.tensors == {number: MATRICES}
    model = onnx.load(report.result.path)
    found = Counter(node.op_type for node in model.graph.node)
    assert {name: found[name] for name in nodes} == nodes
    assert report.result.bytes == Path(report.result.path).stat().st_size
    assert report.source.bits_per_weight == pytest.approx(32, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "least_cosine", "most_bits"),
    [("int8-onnx", 0.999, 8.7), ("int4-onnx", 0.957, 5.6), ("fp8-onnx", 0.9945, 8.5)],
)
def test_formats_keep_near_the_source(
    reports: dict[str, Report], sources: dict[str | None, Path], kind: str, least_cosine: float, most_bits: float
) -> None:
    """Bounds: the least cosine over five seeds (0.9995, 0.9787, 0.9973), with double its distance from 1."""
    report = reports[kind]
    assert report.agreement is not None and report.agreement.cosine_min is not None
    assert least_cosine < report.agreement.cosine_min <= report.agreement.cosine_mean < 1  # type: ignore[operator]
    assert report.result.bits_per_weight < most_bits
    tokenizer = sources[None].with_name("tokenizer.json")
    texts = ["Stop pump three at once.", "How warm is the boiler in hall two?", "Nothing happened during the night."]
    ours, theirs = (mean_states(Path(file.path), tokenizer, texts) for file in (report.source, report.result))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > least_cosine


def test_fewer_bits_are_smaller_and_farther(reports: dict[str, Report]) -> None:
    eight, four = reports["int8-onnx"], reports["int4-onnx"]
    assert eight.agreement and four.agreement
    assert four.agreement.cosine_mean < eight.agreement.cosine_mean  # type: ignore[operator]
    assert four.result.bytes < eight.result.bytes < eight.source.bytes / 3


def test_the_report_names_what_was_read(reports: dict[str, Report]) -> None:
    for kind, report in reports.items():
        assert report.agreement and report.latency
        assert (report.agreement.text, report.agreement.tokenizer) == ("the package's own text", "tokenizer.json")
        assert report.agreement.output == "last_hidden_state, mean over tokens" and report.agreement.sentences > 60
        assert report.agreement.top1_agreement is None and report.agreement.candidates == 0
        assert report.latency.source_ms > 0 and report.latency.result_ms > 0 and report.latency.tokens > 4
        assert (report.seconds.calibration > 0) == ONNX_KINDS[kind].calibrated


def test_larger_blocks_are_farther(tmp_path: Path, reports: dict[str, Report], sources: dict[str | None, Path]) -> None:
    report = written(sources[None], tmp_path / "x.onnx", "int4-onnx", block=128)
    small = reports["int4-onnx"]
    for found, block in ((small, 32), (report, 128)):
        nodes = [node for node in onnx.load(found.result.path).graph.node if node.domain == "com.microsoft"]
        assert {a.i for node in nodes for a in node.attribute if a.name == "block_size"} == {block}
    assert report.agreement and small.agreement
    assert report.agreement.cosine_mean < small.agreement.cosine_mean  # type: ignore[operator]


def test_classifiers_are_judged_by_their_labels(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    report = written(sources["classifier"], tmp_path / "x.onnx", "int8-onnx")
    assert report.agreement and report.agreement.cosine_mean is None
    assert report.agreement.top1_agreement > 0.9 and report.agreement.score_error < 0.1  # type: ignore[operator]
    assert report.agreement.output == "logits" and report.agreement.candidates == 0


def test_rerankers_are_judged_by_the_candidate_they_choose(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    report = written(sources["reranker"], tmp_path / "x.onnx", "int8-onnx", most_tokens=4000)
    assert report.agreement and report.agreement.candidates == 4
    assert 5 <= report.agreement.sentences < 60  # four pairs each: the tokens are used up sooner
    assert report.agreement.top1_agreement > 0.7  # type: ignore[operator]


def test_without_a_tokenizer_tokens_are_random_and_it_is_said(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    source = tmp_path / "alone.onnx"
    source.write_bytes(sources[None].read_bytes())
    report = written(source, tmp_path / "x.onnx", "fp8-onnx")
    assert report.agreement and (report.agreement.text, report.agreement.tokenizer) == ("random tokens", "")
    assert report.agreement.cosine_min > 0.99  # type: ignore[operator]
    named = written(
        source, tmp_path / "x.onnx", "int8-onnx", force=True, tokenizer=sources[None].with_name("tokenizer.json")
    )
    assert named.agreement and named.agreement.tokenizer == "tokenizer.json"


def test_weights_beside_the_model_are_read_and_never_overwritten(
    tmp_path: Path, sources: dict[str | None, Path]
) -> None:
    source, beside = tmp_path / "model.onnx", tmp_path / "model.onnx_data"
    model = onnx.load(str(sources[None]))
    onnx.save_model(model, str(source), save_as_external_data=True, location=beside.name, size_threshold=100)
    before = beside.read_bytes()
    report = written(source, tmp_path / "x.onnx", "int4-onnx", report=False)
    assert report.source.bytes == source.stat().st_size + beside.stat().st_size
    assert report.result.tensors == {"int4": MATRICES} and report.agreement is None
    with pytest.raises(ConfigurationError, match="holds the weights of"):
        written(source, beside, "int8-onnx", force=True)
    assert beside.read_bytes() == before
    beside.unlink()
    with pytest.raises(ModelUnusable, match="not beside it; get both"):
        written(source, tmp_path / "y.onnx", "int8-onnx")


def small_model(path: Path, number: int, *, opset: int = 13, table: int = 1, name: str = "input_ids") -> Path:
    """Rows of a table times a matrix, in an old opset. `number`, `table`: types of the matrix and the table."""
    rng = np.random.default_rng(0)
    tensors = [
        helper.make_tensor(tensor, kind, shape, rng.standard_normal(shape).ravel())
        for tensor, kind, shape in (("table", table, (300, 64)), ("matrix", number, (64, 32)))
    ]
    nodes = [
        helper.make_node("Gather", ["table", name], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["out"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.INT64, (1, 16))],
        [helper.make_tensor_value_info("out", number, (1, 16, 32))],
    ]
    graph = helper.make_graph(nodes, "small", *ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", list(ONNX_KINDS))
def test_old_opsets_and_fixed_lengths_are_taken(tmp_path: Path, kind: str) -> None:
    report = written(small_model(tmp_path / "m.onnx", TensorProto.FLOAT), tmp_path / "x.onnx", kind)
    assert report.agreement and report.agreement.cosine_min > 0.97  # type: ignore[operator]
    assert len(report.result.tensors) == 1 and "f32" not in report.result.tensors


def test_half_precision_is_refused(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.onnx", TensorProto.FLOAT16, table=TensorProto.FLOAT16)
    with pytest.raises(ModelUnusable, match="weights in f16; start from the FP32 model"):
        written(source, tmp_path / "x.onnx", "int8-onnx")


def test_models_that_read_no_tokens_are_written_but_not_judged(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.onnx", TensorProto.FLOAT, name="numbers")
    with pytest.raises(ModelUnusable, match=r"reads numbers.*--no-report"):
        written(source, tmp_path / "x.onnx", "int8-onnx")
    assert left_behind(tmp_path) == ["m.onnx"]
    assert written(source, tmp_path / "x.onnx", "int8-onnx", report=False).result.tensors == {"int8": 2}


def test_models_without_constant_matrices_are_refused(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.onnx", TensorProto.FLOAT)
    model = onnx.load(str(source))
    del model.graph.node[1]
    model.graph.node[0].output[0] = "out"
    onnx.save(model, str(source))
    with pytest.raises(ModelUnusable, match="multiplies nothing with constant matrices"):
        written(source, tmp_path / "x.onnx", "int8-onnx")


def test_what_is_quantized_already_is_refused(tmp_path: Path, reports: dict[str, Report]) -> None:
    for report in reports.values():
        with pytest.raises(ModelUnusable, match="quantized already"):
            written(Path(report.result.path), tmp_path / "x.onnx", "int8-onnx")
    assert left_behind(tmp_path) == []


def test_damaged_files_are_called_so(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    data = sources[None].read_bytes()
    for name, content in (("empty", b""), ("words", b"hello, this is no model"), ("cut", data[: len(data) // 2])):
        source = tmp_path / f"{name}.onnx"
        source.write_bytes(content)
        with pytest.raises(ModelUnusable, match="no ONNX model, or a damaged one"):
            written(source, tmp_path / "x.onnx", "int8-onnx")
    with pytest.raises(ModelUnusable, match="there is no file"):
        written(tmp_path / "none.onnx", tmp_path / "x.onnx", "int8-onnx")
    with pytest.raises(ModelUnusable, match="is a directory"):
        written(tmp_path, tmp_path / "x.onnx", "int8-onnx")


def test_formats_and_files_must_match(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    with pytest.raises(ConfigurationError, match="is an ONNX model, and q4_0 a format of GGUF files; choose int8-onnx"):
        written(sources[None], tmp_path / "x.gguf", "q4_0")
    for kind in ONNX_KINDS:
        with pytest.raises(
            ConfigurationError, match=f"is a GGUF file, and {kind} a format of ONNX models; choose q4_0"
        ):
            written(BUILTIN, tmp_path / "x.onnx", kind)
    with pytest.raises(ConfigurationError, match=r"under a name that ends in \.gguf"):
        written(sources[None], tmp_path / "x.gguf", "int8-onnx")
    with pytest.raises(ConfigurationError, match=r"under a name that ends in \.onnx"):
        written(BUILTIN, tmp_path / "x.onnx", "q8_0")
    assert set(KINDS).isdisjoint(ONNX_KINDS)


@pytest.mark.parametrize(
    ("kind", "option", "match"),
    [
        ("int8-onnx", {"importance": "on"}, "leave --imatrix out"),
        ("int8-onnx", {"manifest": Path("m.toml")}, "leave --manifest out"),
        ("int8-onnx", {"allow_requantize": True}, "leave --allow-requantize out"),
        ("int4-onnx", {"calibration": Path("t.txt")}, "is not calibrated"),
        ("int8-onnx", {"block": 32}, "has no blocks"),
        ("int4-onnx", {"block": 64}, "blocks of 32 or 128"),
        ("fp8-onnx", {"calibration": Path("no-such.txt")}, "check --calibration"),
        ("fp8-onnx", {"tokenizer": Path("no-such.json")}, "check --tokenizer"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, sources: dict[str | None, Path], kind: str, option: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        written(sources[None], tmp_path / "x.onnx", kind, **option)
    assert left_behind(tmp_path) == []


def test_options_for_onnx_are_refused_for_gguf(tmp_path: Path) -> None:
    for option in ({"tokenizer": BUILTIN}, {"block": 32}):
        with pytest.raises(ConfigurationError, match="is for ONNX models"):
            written(BUILTIN, tmp_path / "x.gguf", "q4_0", **option)


def test_another_model_s_tokenizer_is_refused(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    source = small_model(tmp_path / "m.onnx", TensorProto.FLOAT)
    with pytest.raises(ConfigurationError, match=r"knows 1,024 pieces, the model only 300.*--tokenizer"):
        written(source, tmp_path / "x.onnx", "int8-onnx", tokenizer=sources[None].with_name("tokenizer.json"))
    with pytest.raises(ConfigurationError, match=r"is no tokenizer in the form of tokenizer\.json"):
        written(source, tmp_path / "x.onnx", "int8-onnx", tokenizer=source)


def test_a_text_of_few_sentences_is_refused(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The pump hums and the valve is closed. " * 100)
    with pytest.raises(ConfigurationError, match="has 1 different sentences"):
        written(sources[None], tmp_path / "x.onnx", "int8-onnx", text=text)


def test_a_source_that_computes_no_numbers_is_said(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.onnx", TensorProto.FLOAT)
    model = onnx.load(str(source))
    values = numpy_helper.to_array(model.graph.initializer[1]).copy()
    values[:] = np.inf
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "matrix"))
    onnx.save(model, str(source))
    with pytest.raises(ModelUnusable, match="the source computes values that are no numbers"):
        written(source, tmp_path / "x.onnx", "int8-onnx")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"onnx_ir"}, r"int4-onnx cannot be written: onnx_ir is not installed; pip install 'edge-node\[quantize\]'"),
        ({"onnx", "ml_dtypes"}, r"onnx, ml_dtypes are not installed; pip install 'edge-node\[quantize\]'"),
        ({"onnxruntime"}, r"onnxruntime is not installed; pip install 'edge-node\[onnx\]'"),
        ({"onnx", "tokenizers"}, r"onnx, tokenizers are not installed; pip install 'edge-node\[onnx,quantize\]'"),
    ],
)
def test_missing_packages_are_named_with_their_extra(missing: set[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        require_packages(ONNX_KINDS["int4-onnx"], lambda name: name not in missing)
    require_packages(ONNX_KINDS["int4-onnx"], lambda name: name != "sympy")  # which INT8 alone wants


def test_the_command_tells_of_a_missing_extra(tmp_path: Path, home: Path, sources: dict[str | None, Path]) -> None:
    hidden = "import sys; sys.modules['onnx_ir'] = None; from edge.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", hidden, "quantize", str(sources[None]), str(tmp_path / "x.onnx"), "--to"]
    environment = {**os.environ, "EDGE_HOME": str(home)}
    done = subprocess.run([*command, "int4-onnx"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 78 and "pip install 'edge-node[quantize]'" in done.stderr
    done = subprocess.run([*command, "fp8-onnx"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def _at(stage: str, deed: Callable[[], None]) -> Callable[[str, float], None]:
    def on_step(reached: str, share: float) -> None:
        if reached == stage:
            deed()

    return on_step


@pytest.mark.parametrize(
    ("kind", "stage"), [("int8-onnx", "writing"), ("int4-onnx", "writing"), ("fp8-onnx", "calibrating")]
)
def test_an_interruption_leaves_nothing(tmp_path: Path, sources: dict[str | None, Path], kind: str, stage: str) -> None:
    def interrupt() -> None:
        assert workers(), "it is at work"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(Wish(sources[None], never_whole(tmp_path / "x.onnx"), kind), {}, _at(stage, interrupt))
    assert workers() == [] and left_behind(tmp_path) == []


def test_a_child_that_dies_leaves_what_was_there(tmp_path: Path, sources: dict[str | None, Path]) -> None:
    target = never_whole(tmp_path / "x.onnx")
    target.write_text("precious")
    wish = Wish(sources[None], target, "fp8-onnx", force=True)

    def kill() -> None:
        (child,) = workers()
        child.kill()

    with pytest.raises(EngineFault, match="killed by signal 9 while"):
        quantize(wish, {}, _at("looking at the source", kill))
    assert left_behind(tmp_path) == ["x.onnx"] and target.read_text() == "precious"


@pytest.mark.parametrize("kind", list(ONNX_KINDS))
def test_a_full_disk_is_called_so(home: Path, tmp_path: Path, sources: dict[str | None, Path], kind: str) -> None:
    target = tmp_path / "x.onnx"
    target.write_text("precious")
    limited = f"ulimit -f 60; exec {sys.executable} -m edge quantize {sources[None]} {target} --to {kind} --force"
    environment = {**os.environ, "EDGE_HOME": str(home)}
    done = subprocess.run(["bash", "-c", limited], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 78 and "the disk is full" in done.stderr, done.stderr
    assert left_behind(tmp_path) == ["home", "x.onnx"] and target.read_text() == "precious"


def test_the_command_says_what_it_cost(run_edge: RunEdge, tmp_path: Path, sources: dict[str | None, Path]) -> None:
    target = str(tmp_path / "x.onnx")
    done = run_edge("quantize", str(sources[None]), target, "--to", "int8-onnx")
    assert done.returncode == 0, done.stderr
    for words in ("16 int8", "tokens by tokenizer.json", "cosine", "one sentence", " ms (", "writing"):
        assert words in done.stdout
    again = run_edge("quantize", str(sources[None]), target, "--to", "int8-onnx")
    assert (again.returncode, "--force" in again.stderr) == (78, True)
    found = json.loads(
        run_edge("quantize", str(sources["reranker"]), target, "--to", "int8-onnx", "--force", "--json").stdout
    )
    assert (found["format"], found["version"], found["kind"]) == ("edge-quantize", 1, "int8-onnx")
    assert found["agreement"]["candidates"] == 4 and found["agreement"]["cosine_mean"] is None
