"""Tensors of several clients share a pass only where that changes nobody's answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge.errors import EdgeError, InvalidRequest
from edge.onnx.client import TensorClient
from edge.onnx.joining import Joiner, alike, joined, may_join, parted
from edge.onnx.messages import Infer, Tensor, TensorSpec
from tests.onnx.conftest import load_of, run_with_child
from tests.onnx.test_child import ending


def tensor(values: Any, name: str = "x") -> Tensor:
    array = np.array(values, np.float32)
    return Tensor(name, "FP32", list(array.shape), array.tobytes())


def infer(number: int, values: Any, outputs: list[str] | None = None) -> Infer:
    return Infer(number, [tensor(values)], outputs or [])


def values(tensors: list[Tensor] | EdgeError) -> list[Any]:
    assert not isinstance(tensors, EdgeError)
    return [np.frombuffer(one.data, np.float32).reshape(one.shape).tolist() for one in tensors]


class Machine:
    """Runs passes by a rule, and counts them."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.passes = rule, 0

    def __call__(self, work: Infer) -> list[Tensor]:
        self.passes += 1
        return [tensor(self.rule(np.array(values(work.inputs)[0])), "y")]


def joiner(machine: Machine, *, possible: bool = True, most_rows: int = 8, slo_s: float = 1.0) -> Joiner:
    return Joiner(
        machine, lambda error: InvalidRequest("too much"), possible=possible, most_rows=most_rows, slo_s=slo_s
    )


def test_only_a_free_first_axis_of_one_name_in_all_tensors_may_be_a_batch() -> None:
    def spec(first: int | str, datatype: str = "FP32") -> TensorSpec:
        return TensorSpec(
            "x", datatype, [-1 if isinstance(first, str) else first, 3], [first if isinstance(first, str) else "", ""]
        )

    assert may_join([spec("batch"), spec("batch")], [spec("batch")])
    for inputs, outputs in (
        ([spec("batch")], [spec("n")]),
        ([spec("")], [spec("")]),
        ([spec(1)], [spec(1)]),
        ([spec("batch", "BYTES")], [spec("batch")]),
        ([spec("batch")], [TensorSpec("y", "FP32", [], [])]),
        ([], []),
    ):
        assert not may_join(inputs, outputs)


def test_what_is_joined_comes_apart_again() -> None:
    works = [infer(1, [[1, 2]]), infer(2, [[3, 4], [5, 6]])]
    whole = joined(works)
    assert values(whole.inputs) == [[[1, 2], [3, 4], [5, 6]]]
    parts = parted(whole.inputs, [1, 2])
    assert parts is not None and [values(part) for part in parts] == [[[[1, 2]]], [[[3, 4], [5, 6]]]]
    assert parted([tensor([[1]])], [1, 2]) is None


def test_inputs_are_matched_by_name() -> None:
    works = [
        Infer(1, [tensor([[1]], "a"), tensor([[2]], "b")], []),
        Infer(2, [tensor([[4]], "b"), tensor([[3]], "a")], []),
    ]
    assert {one.name: values([one])[0] for one in joined(works).inputs} == {"a": [[1], [3]], "b": [[2], [4]]}


def test_partners_have_the_same_form_and_share_no_more_rows_than_are_good() -> None:
    made = joiner(Machine(lambda x: x))
    first = infer(1, [[1, 2]])
    others = [
        infer(2, [[1, 2, 3]]),
        infer(3, [[1, 2]], ["y"]),
        infer(4, [[1, 2]] * 7),
        infer(5, [[1, 2]]),
        infer(6, np.zeros((0, 2))),
    ]
    assert [work.request_id for work in made.partners(first, others)] == [4]
    assert [work.request_id for work in made.partners(first, others[3:])] == [5]
    made.took([first], 0.5)
    assert made.partners(first, others) == [], "one takes more than half of the target already"
    assert joiner(Machine(lambda x: x), possible=False).partners(first, others) == []


def test_joined_passes_are_proved_first_and_then_run_once_for_all() -> None:
    machine = Machine(lambda x: x * 2)
    made, works = joiner(machine), [infer(1, [[1, 2]]), infer(2, [[3, 4]])]
    for expected in (3, 6, 9, 10, 11):
        assert [values(result) for result in made.run(works)] == [[[[2, 4]]], [[[6, 8]]]]
        assert machine.passes == expected


@pytest.mark.parametrize("rule", [lambda x: x - x.mean(axis=0), lambda x: x[:1]])
def test_a_model_that_mixes_its_rows_is_found_out_and_nobody_gets_anothers_answer(rule: Any) -> None:
    machine = Machine(rule)
    made, works = joiner(machine), [infer(1, [[1, 2]]), infer(2, [[3, 4]])]
    equal = [infer(1, [[1, 2], [3, 4]]), infer(2, [[3, 4], [1, 2]])]
    for _ in range(4):  # what all clients send alike shows nothing
        assert [values(result) for result in made.run(equal)] == [values(machine(work)) for work in equal]
    assert [values(result) for result in made.run(works)] == [values(machine(work)) for work in works]
    assert made.partners(works[0], works[1:]) == []


def test_a_pass_in_which_only_one_is_answered_proves_nothing() -> None:
    def rule(x: np.ndarray) -> np.ndarray:
        if len(x) == 1 and x[0, 0] < 0:
            raise InvalidRequest("negative")
        return x - x.mean(axis=0) * (x >= 0).all()

    machine = Machine(rule)
    made = joiner(machine)
    for _ in range(4):
        results = made.run([infer(1, [[-1.0]]), infer(2, [[0.0]])])
        assert isinstance(results[0], InvalidRequest) and values(results[1]) == [[[0.0]]]
    works = [infer(1, [[1.0]]), infer(2, [[5.0]])]
    assert [values(result) for result in made.run(works)] == [[[[0.0]]], [[[0.0]]]]


def test_what_cannot_be_joined_may_have_no_rows_at_all() -> None:
    made = joiner(Machine(lambda x: x), possible=False)
    made.took([infer(1, 5.0)], 0.1)
    made.took([Infer(2, [], [])], 0.1)
    assert made.partners(infer(1, 5.0), [infer(2, 5.0)]) == []


def test_what_one_of_them_spoils_fails_alone() -> None:
    def rule(x: np.ndarray) -> np.ndarray:
        if (x < 0).any():
            raise InvalidRequest("negative")
        if x.sum() > 100:
            raise MemoryError
        return x

    results = joiner(Machine(rule)).run([infer(1, [[1.0]]), infer(2, [[-1.0]]), infer(3, [[200.0]])])
    assert values(results[0]) == [[[1.0]]]
    assert [str(result) for result in results[1:]] == ["negative", "too much"]


def test_rounding_is_no_difference_and_nan_is_none_either() -> None:
    assert alike([tensor([1.0, np.nan, 1e-9])], [tensor([1.0001, np.nan, -1e-9])])
    assert not alike([tensor([1.0])], [tensor([1.1])]) and not alike([tensor([1.0])], [tensor([[1.0]])])
    whole = Tensor("y", "INT64", [1], np.array([5]).tobytes())
    assert alike([whole], [whole]) and not alike([whole], [Tensor("y", "INT64", [1], np.array([6]).tobytes())])


@pytest.mark.parametrize("mixes", [False, True])
def test_clients_that_ask_at_once_get_each_their_own(tmp_path: Path, mixes: bool) -> None:
    """One model doubles, the other takes off the mean over its first axis."""
    nodes = [helper.make_node("Add", ["x", "x"], ["double"])]
    if mixes:
        nodes.append(helper.make_node("ReduceMean", ["double"], ["mean"], axes=[0], keepdims=1))
        nodes.append(helper.make_node("Sub", ["double", "mean"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["double"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "rows", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )

    async def use(client: TensorClient) -> None:
        for turn in range(4):
            given = [np.random.default_rng(turn * 40 + n).random((1 + n % 3, 4), np.float32) for n in range(40)]
            tasks = [ending(client.infer([tensor(one)], [])) for one in given]
            for one, (found,) in zip(given, await asyncio.gather(*tasks), strict=True):
                own = 2 * one - (2 * one.mean(axis=0) if mixes else 0)
                assert np.frombuffer(found.data, np.float32).reshape(one.shape) == pytest.approx(own, abs=1e-5)
        for _ in range(2):  # accounts: the first may have been on its way before the last answer
            told = client.stats
            while client.stats is told:
                await asyncio.sleep(0.02)
        assert client.stats is not None and client.status.restarts == 0
        if not mixes:
            assert client.stats.passes < 160, "no two shared a pass"

    run_with_child(
        load_of(tmp_path, slo_s=600.0), use
    )  # a pass in which the machine stood still is none too long to share


def test_a_child_takes_inputs_of_no_axes(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ()) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "scalar", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )

    async def use(client: TensorClient) -> None:
        for turn in range(3):
            (found,) = await client.infer([tensor(float(turn))], [])
            assert values([found]) == [2.0 * turn]
        assert client.status.restarts == 0

    run_with_child(load_of(tmp_path), use)
