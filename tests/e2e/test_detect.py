"""A real node with made detectors beside its own model, asked by HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import BACKGROUND_S, RunningNode, start_node, stop_node
from tests.onnx.detectors import picture, write_detector


def put_models(home: Path) -> None:
    for name, layout, more in (("heron", "detr", "threshold = 0.6\n"), ("swift", "yolo", "")):
        write_detector(home / "models" / name / "model.onnx", layout)
        (home / "models" / f"{name}.toml").write_text(
            f'name = "{name}"\ntask = "detection"\nsource = "file:/stick/model.onnx"\nfile = "{name}/model.onnx"\n'
            f'licence = "MIT"\ndescription = "Made."\n[detector]\nlayout = "{layout}"\nsize = [64, 64]\n'
            f'labels = ["red", "green", "blue"]\n{more}'
        )
    (home / "edge.toml").write_text("[models.heron]\n[models.swift]\n[onnx]\nmost_picture_mpx = 1.0\n")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("detect")
    put_models(home)
    running = start_node(home, EDGE_ENGINE__SLOTS="2", EDGE_ENGINE__CONTEXT_TOKENS="512", EDGE_CACHE__HOST_MIB="16")
    yield running
    stop_node(running)


@pytest.fixture
def http(node: RunningNode) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as made:
        yield made


@pytest.mark.parametrize("model", ["heron", "swift"])
def test_things_are_found_whichever_way_the_picture_is_sent(http: httpx.Client, model: str) -> None:
    png, jpeg = picture(400, 200), picture(400, 200, kind="JPEG", quality=95)
    coded = base64.b64encode(png).decode()
    answers = [
        http.post("/v1/detect", json={"model": model, "image": f"data:image/png;base64,{coded}"}),
        http.post("/v1/detect", json={"model": model, "image": coded, "threshold": None}),
        http.post(f"/v1/detect?model={model}", content=png, headers={"Content-Type": "image/png"}),
        http.post(
            "/v1/detect",
            params={"model": model, "threshold": 0.4},
            content=jpeg,
            headers={"Content-Type": "image/jpeg"},
        ),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["model"] == model and found["image"] == {"width": 400, "height": 200}
        boxes = {one["label"]: one["box"] for one in found["data"]}
        assert boxes["red"] == pytest.approx({"xmin": 0, "ymin": 0, "xmax": 200, "ymax": 100}, abs=9)
        assert boxes["blue"] == pytest.approx({"xmin": 200, "ymin": 100, "xmax": 400, "ymax": 200}, abs=9)
        assert len(found["data"]) == 2 and all(0.9 < one["score"] <= 1 for one in found["data"])
    assert answers[0].headers["x-edge-class"] == "best-effort"


def test_a_request_may_ask_for_more_or_for_fewer(http: httpx.Client) -> None:
    def labels(**query: Any) -> list[str]:
        kind = {"Content-Type": "image/png"}
        asked = http.post(
            "/v1/detect", params={"model": "heron", **query}, content=picture(64, 64, "rrrb"), headers=kind
        )
        return [one["label"] for one in asked.json()["data"]]

    assert sorted(labels()) == ["blue", "red", "red", "red"]
    assert len(labels(max_detections=2)) == 2 and labels(threshold=1.0) == []


PNG = base64.b64encode(picture(64, 64)).decode()
IMAGE = {"Content-Type": "image/png"}


@pytest.mark.parametrize(
    ("sent", "status", "code", "said"),
    [
        ({"json": {"model": "heron"}}, 400, "invalid_value", "`image`: Field required"),
        ({"json": {"model": "heron", "image": ""}}, 400, "invalid_value", "`image`"),
        ({"json": {"model": "heron", "image": "%%%"}}, 400, "invalid_value", "neither base64 nor a data URL"),
        ({"json": {"model": "heron", "image": "https://a/b.png"}}, 400, "invalid_value", "nothing is fetched here"),
        ({"json": {"model": "heron", "image": "aGVsbG8="}}, 400, "invalid_value", "send JPEG, PNG or WebP"),
        ({"json": {"model": "heron", "image": PNG, "threshold": 2}}, 400, "invalid_value", "`threshold`"),
        ({"json": [1]}, 400, "invalid_value", "body"),
        ({"content": b"{"}, 400, "invalid_value", "not JSON"),
        ({"params": {"model": "heron"}, "content": b"", "headers": IMAGE}, 400, "invalid_value", "is empty"),
        ({"content": b"x", "headers": IMAGE}, 400, "invalid_value", "`model`: Field required"),
        (
            {"params": {"model": "heron", "threshold": "x"}, "content": b"x", "headers": IMAGE},
            400,
            "invalid_value",
            "no num",
        ),
        (
            {"params": {"model": "heron", "threshold": "nan"}, "content": b"x", "headers": IMAGE},
            400,
            "invalid_value",
            "thre",
        ),
        (
            {"content": b"x", "headers": {"Content-Type": "text/plain"}},
            400,
            "invalid_value",
            "'text/plain'; send the picture",
        ),
        (
            {"params": {"model": "heron"}, "content": picture(2000, 1000), "headers": IMAGE},
            400,
            "invalid_value",
            "2,000 x 1,000 pixels; at most 1.0 million",
        ),
        ({"json": {"model": "nobody", "image": PNG}}, 404, "model_not_found", "'nobody' is not served here"),
        ({"json": {"model": "edge-builtin", "image": PNG}}, 400, "wrong_model", "/v1/chat/completions"),
    ],
)
def test_what_is_wrong_is_said(http: httpx.Client, sent: dict[str, Any], status: int, code: str, said: str) -> None:
    answer = http.post("/v1/detect", **sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert said in error["message"]


def test_a_detector_is_asked_by_its_route_and_by_its_tensors(http: httpx.Client) -> None:
    refused = http.post("/v1/embeddings", json={"model": "heron", "input": "a"})
    assert refused.status_code == 400 and "ask it by /v1/detect" in refused.json()["error"]["message"]
    assert http.get("/v2/models/heron").json()["inputs"] == [
        {"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 64, 64]}
    ]
    card = http.get("/v1/models/heron").json()
    assert card["meta"]["task"] == "detection"
    assert "/v1/detect" in http.get("/openapi.json").json()["paths"]
