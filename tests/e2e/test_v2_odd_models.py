"""Models that are no encoders by /v2: strings in and out, no inputs, no shapes in the file, an answer beyond the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import NodeProto, TensorProto, helper

from tests.e2e.conftest import BACKGROUND_S, RunningNode, start_node, stop_node

Ends = Sequence[tuple[str, int, list[int | str] | None]]


def save(directory: Path, name: str, nodes: list[NodeProto], inputs: Ends, outputs: Ends) -> None:
    ends = [[helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, name, *ends)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), directory / f"{name}.onnx"
    )


def constant(name: str, kind: int, values: list[Any]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, [len(values)], values))


def put_models(directory: Path) -> list[str]:
    directory.mkdir()
    node, floats, strings, ints = helper.make_node, TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT64
    labels = [constant("words", strings, [b"ok", "schlecht ä".encode()]), node("Gather", ["words", "place"], ["label"])]
    save(directory, "labels", labels, [("place", ints, ["n"])], [("label", strings, ["n"])])
    same = [node("Identity", ["text"], ["same"])]
    save(directory, "echo", same, [("text", strings, ["n"])], [("same", strings, ["n"])])
    save(directory, "still", [constant("three", floats, [1.0, 2.0, 3.0])], [], [("three", floats, [3])])
    save(directory, "shapeless", [node("Neg", ["x"], ["y"])], [("x", floats, None)], [("y", floats, None)])
    wide = [node("Expand", ["x", "shape"], ["y"])]
    save(directory, "wide", wide, [("x", floats, [1]), ("shape", ints, [1])], [("y", floats, ["n"])])
    return ["labels", "echo", "still", "shapeless", "wide"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("odd")
    names = put_models(home / "models")
    tables = "".join(f'[models.{name}]\nsource = "{home / "models" / name}.onnx"\n' for name in names)
    (home / "edge.toml").write_text(tables)
    running = start_node(home, EDGE_ENGINE__SLOTS="2", EDGE_ENGINE__CONTEXT_TOKENS="512", EDGE_CACHE__HOST_MIB="16")
    yield running
    stop_node(running)


@pytest.fixture
def v2(node: RunningNode) -> Iterator[triton.InferenceServerClient]:
    patience = {"connection_timeout": BACKGROUND_S, "network_timeout": BACKGROUND_S}
    made = triton.InferenceServerClient(node.base_url.removeprefix("http://"), **patience)
    yield made
    made.close()


def given(name: str, values: np.ndarray, datatype: str, *, binary: bool) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


@pytest.mark.parametrize("binary", [False, True])
def test_labels_come_as_strings(v2: triton.InferenceServerClient, binary: bool) -> None:
    places = given("place", np.array([1, 0, 1]), "INT64", binary=binary)
    wanted = [triton.InferRequestedOutput("label", binary_data=binary)]
    found = v2.infer("labels", [places], outputs=wanted).as_numpy("label")
    texts = [text.decode() if isinstance(text, bytes) else text for text in found]
    assert texts == ["schlecht ä", "ok", "schlecht ä"]


@pytest.mark.parametrize("binary", [False, True])
def test_strings_go_in(v2: triton.InferenceServerClient, binary: bool) -> None:
    words = given("text", np.array(["pump", "", "Über 3 °C"], dtype=object), "BYTES", binary=binary)
    found = v2.infer("echo", [words]).as_numpy("same")
    assert [text.decode() for text in found] == ["pump", "", "Über 3 °C"]


def test_a_model_without_inputs_is_asked_with_none(v2: triton.InferenceServerClient) -> None:
    assert v2.get_model_metadata("still")["inputs"] == []
    assert v2.infer("still", []).as_numpy("three").tolist() == [1, 2, 3]


def test_what_has_no_shape_in_its_file_takes_any(v2: triton.InferenceServerClient) -> None:
    for shape in ((2,), (2, 3)):
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        found = v2.infer("shapeless", [given("x", values, "FP32", binary=True)]).as_numpy("y")
        assert found.tolist() == (-values).tolist()


def test_an_answer_that_there_is_no_memory_for_is_refused_and_the_model_answers_on(node: RunningNode) -> None:
    """Whatever step it is at: the library's own output, the copies that cross the pipe."""

    def asked(count: int) -> httpx.Response:
        inputs = [
            {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]},
            {"name": "shape", "datatype": "INT64", "shape": [1], "data": [count]},
        ]
        outputs = [{"name": "y", "parameters": {"binary_data": True}}]
        url = f"{node.base_url}/v2/models/wide/infer"
        return httpx.post(url, json={"inputs": inputs, "outputs": outputs}, timeout=BACKGROUND_S, trust_env=False)

    assert asked(4).status_code == 200
    for count in (3_000_000, 5_000_000, 7_000_000, 9_000_000, 15_000_000, 40_000_000, 1 << 34):
        answer = asked(count)
        assert answer.status_code in (200, 400), (count, answer.text[:300])
        assert asked(4).status_code == 200
