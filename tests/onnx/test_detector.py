"""Detectors: boxes in the picture's own pixels, whatever its size, its form and how the camera was held."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from PIL import Image

from edge.errors import InvalidRequest, ModelUnusable
from edge.loading import PIXEL_BYTES
from edge.onnx.boxes import things_in
from edge.onnx.client import TensorClient
from edge.onnx.messages import Found, Looking
from edge.onnx.picture import Placed, placed
from tests.onnx.conftest import DETR, MIB, YOLO, detector_load_of, run_with_child
from tests.onnx.detectors import LABELS, SIDE, picture, write_detector
from tests.onnx.test_child import until_ready


def seen(found: Found) -> list[tuple[str, list[int]]]:
    return sorted((LABELS[thing.label], [round(side) for side in thing.box]) for thing in found.things)


@pytest.mark.parametrize(
    ("layout", "options"), [(DETR, {}), (DETR, {"mask": True}), (YOLO, {}), (YOLO, {"turned": True})]
)
def test_things_have_their_places_in_the_picture(
    tmp_path: Path, layout: dict[str, Any], options: dict[str, Any]
) -> None:
    path = write_detector(tmp_path / "model.onnx", layout["layout"], **options)

    async def use(client: TensorClient) -> None:
        assert client.facts is not None and client.facts.labels == LABELS
        found = await client.detect(picture(200, 100), None, 100)
        assert (found.width, found.height) == (200, 100)
        assert seen(found) == [("blue", [100, 50, 200, 100]), ("red", [0, 0, 100, 50])]
        assert all(thing.score > 0.99 for thing in found.things)
        assert (await client.detect(picture(200, 100, "...."), None, 100)).things == []
        everything = await client.detect(picture(200, 100, "...."), 0.0, 3)
        assert len(everything.things) == 3

    run_with_child(detector_load_of(path, layout), use)


def test_a_jpeg_that_is_drawn_step_by_step_is_read_but_not_one_of_countless_steps() -> None:
    plain = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(plain, "JPEG", progressive=True)
    data = plain.getvalue()
    assert data.count(b"\xff\xda") > 5
    placed(data + b"\xff\xda\0\2" * 1000, Looking(**DETR))  # what stands behind it, such as a film, is no part of it
    last = data.rindex(b"\xff\xda")
    again = data[last:-2] * 1000  # sixteen bytes each, and each goes over the whole picture
    with pytest.raises(InvalidRequest, match="more than 64 passes"):
        placed(data[:-2] + again + data[-2:], Looking(**DETR))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (30, 90), (64, 64)])
def test_any_form_and_size_is_read(kind: str, width: int, height: int) -> None:
    found = placed(picture(width, height, "rgb.", kind), Looking(**DETR))
    assert found.pixels.shape == (3, SIDE, SIDE) and found.pixels.dtype == np.float32
    centres = found.pixels[:, SIDE // 4 :: SIDE // 2, SIDE // 4 :: SIDE // 2].reshape(3, 4)
    assert centres == pytest.approx(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], np.float32), abs=0.03)


def test_a_picture_that_keeps_its_form_has_grey_beside_it_and_boxes_are_taken_back(tmp_path: Path) -> None:
    looking = Looking(**{**YOLO, "fit": "letterbox"})
    found = placed(picture(200, 100, "ww"), looking)
    assert found.pixels[:, : SIDE // 4] == pytest.approx(114 / 255) and found.pixels[:, -SIDE // 4 :] == pytest.approx(
        114 / 255
    )
    assert (found.left, found.top, found.scale) == (0, 16, (0.32, 0.32))
    table = np.array([[[32.0, 32.0, 64.0, 32.0, 0.9, 0.1, 0.1]]], np.float32)
    (thing,) = things_in(looking, [table], found, threshold=0.5, most=10)
    assert thing.box == pytest.approx((0, 0, 200, 100), abs=0.5)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_looked_at_as_the_camera_was_held(turn: int) -> None:
    upright = Image.open(io.BytesIO(picture(80, 40, "rg.b")))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera did that asks for this turn: its inverse
    stored = upright.transpose(Image.Transpose(back[turn])) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    out = io.BytesIO()
    stored.save(out, "PNG", exif=exif)
    found = placed(out.getvalue(), Looking(**DETR))
    assert (found.width, found.height) == (80, 40)
    centres = found.pixels[:, SIDE // 4 :: SIDE // 2, SIDE // 4 :: SIDE // 2].reshape(3, 4)
    assert centres == pytest.approx(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float32), abs=0.03)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_pictures_of_other_colours_are_read(mode: str) -> None:
    white = Image.open(io.BytesIO(picture(40, 40, "wwww")))
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 65535, np.uint16))
    else:
        image = white.convert("L").convert(mode) if mode in ("LA", "1") else white.convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG" if mode == "CMYK" else "PNG")
    assert placed(out.getvalue(), Looking(**DETR)).pixels == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_shines_through_is_white_and_spoils_no_colour_beside_it(mode: str) -> None:
    """Left black and opaque, right clear, of a grey or a colour that nobody may see."""
    pixels = np.zeros((50, 90, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:, 45:] = (80, 80, 80, 0)
    image, options = Image.fromarray(pixels), {}
    if mode == "P":
        image, options = image.convert("L").point(lambda grey: int(grey > 0)).convert("P"), {"transparency": 1}
        image.putpalette([0, 0, 0, 80, 160, 80])
    else:
        image = image.convert(mode)
        options = {"RGB": {"transparency": (80, 80, 80)}, "L": {"transparency": 80}}.get(mode, {})
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    found = placed(out.getvalue(), Looking(**{**DETR, "width": SIDE, "height": SIDE})).pixels
    assert found[:, :, : SIDE // 2 - 2] == pytest.approx(0) and found[:, :, SIDE // 2 + 2 :] == pytest.approx(1)
    assert np.diff(found, axis=2).min() >= 0, "no seam of the hidden colour"


_PEAK = """
import io, sys, msgspec
from PIL import Image
from edge.onnx.messages import Looking
from edge.onnx.picture import placed

def kib(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

looking, data = msgspec.json.decode(sys.argv[1], type=Looking), sys.stdin.buffer.read()
for kind in ("PNG", "JPEG"):  # what the library takes once
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, kind)
    placed(out.getvalue(), looking)
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
found = placed(data, looking)
print((kib("VmHWM") - before) * 1024 / (found.width * found.height))
"""


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"transparency": (0, 0, 0)}),
        ("RGBA", {}),
        ("LA", {}),
        ("P", {"transparency": 0}),
        ("I;16", {}),
        ("I;16", {"transparency": 3}),
        ("CMYK", {"format": "JPEG", "progressive": True}),
    ],
)
def test_a_picture_takes_no_more_memory_than_is_planned(mode: str, options: dict[str, Any]) -> None:
    out = io.BytesIO()
    Image.new(mode, (2000, 2000)).save(out, **{"format": "PNG", **options})
    looking = msgspec.json.encode(Looking(**DETR)).decode()
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, looking], input=out.getvalue(), capture_output=True, check=True, timeout=240
    )
    assert 1 < float(done.stdout) < PIXEL_BYTES


def test_colours_are_normed_as_the_manifest_says() -> None:
    looking = Looking(**{**DETR, "mean": [0.5, 0.0, 0.0], "std": [0.5, 1.0, 2.0]})
    assert placed(picture(8, 8, "wwww"), looking).pixels[:, 5, 5].tolist() == pytest.approx([1.0, 1.0, 0.5], abs=1e-5)


def bomb(width: int, height: int) -> bytes:
    """A PNG of that many black pixels in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    body = zlib.compress(bytes(1000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"not a picture", "no picture that can be read: send JPEG, PNG or WebP"),
        (b"", "no picture that can be read"),
        (picture(100, 100, kind="JPEG")[:400], "cannot be read"),
        (picture(100, 100, kind="PNG")[:120], "cannot be read"),
        (picture(40, 40, kind="GIF"), "no picture that can be read"),
        (bomb(100_000, 100_000), "100,000 x 100,000 pixels; at most 4.0 million are read (onnx.most_picture_mpx)"),
        (bomb(3000, 1000), "cannot be read"),
    ],
)
def test_what_is_no_picture_or_too_large_a_one_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        placed(data, Looking(**DETR))
    assert said in caught.value.message and caught.value.param == "image"


def test_the_child_outlives_bad_pictures_and_comes_back_when_killed(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "model.onnx", "detr")

    async def use(client: TensorClient) -> None:
        for data in (b"x", bomb(100_000, 100_000), picture(64, 64)[:90]):
            with pytest.raises(InvalidRequest):
                await client.detect(data, None, 10)
        assert client.status.restarts == 0 and client.status.pid is not None
        assert psutil.Process(client.status.pid).memory_info().rss < 250 * MIB
        os.kill(client.status.pid, signal.SIGKILL)
        await client.changed()
        await until_ready(client)
        assert len((await client.detect(picture(64, 64), None, 10)).things) == 2

    run_with_child(detector_load_of(path), use)


@pytest.mark.parametrize(
    ("layout", "looking", "said"),
    [
        (
            "detr",
            {"labels": ["red", "green"]},
            r"'logits' has shape \[1, 4, 3\]; with 2 labels it must be \[1, things, 2\]",
        ),
        ("detr", {"scores": "softmax"}, r"with 3 labels and one for nothing it must be \[1, things, 4\]"),
        ("detr", {"height": 32}, r"'pixels' is FP32 \[-1, 3, 64, 64\] .* it must take FP32 or FP16 \[1, 3, 32, 64\]"),
        (
            "detr",
            {"scores_output": "x"},
            r"no output 'x': it has logits, pred_boxes; name the right one as `scores_output`",
        ),
        ("detr", {"boxes_output": "logits"}, "`scores_output` and `boxes_output` .* are the same"),
        ("yolo", {}, r"no output 'logits': it has output0"),
        (
            "yolo",
            {**YOLO, "labels": ["a"]},
            r"'output0' has shape \[1, 7, 8\]; for layout yolo with 1 labels it must be \[1, 5",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_the_model_is_said(
    tmp_path: Path, layout: str, looking: dict[str, Any], said: str
) -> None:
    path = write_detector(tmp_path / "model.onnx", layout)

    async def use(_: TensorClient) -> None:
        raise AssertionError("it is loaded")

    with pytest.raises(ModelUnusable, match=said):
        run_with_child(detector_load_of(path, {**DETR, **looking}), use)


# --- outputs ----------------------------------------------------------------------------------------------------------


def whole(width: int = 100, height: int = 100) -> Placed:
    return Placed(np.zeros((3, SIDE, SIDE), np.float32), width, height, (SIDE / width, SIDE / height))


def test_of_boxes_that_cover_each_other_the_surest_of_each_label_stays() -> None:
    rows = [
        [20, 20, 20, 20, 0.9, 0.0, 0.0],
        [21, 20, 20, 20, 0.8, 0.0, 0.0],  # the same once more
        [21, 20, 20, 20, 0.0, 0.7, 0.0],  # another thing there
        [50, 50, 10, 10, 0.6, 0.0, 0.0],
        [31, 20, 20, 20, 0.55, 0.0, 0.0],  # beside the first
    ]
    found = things_in(
        Looking(**YOLO), [np.array([rows], np.float32).transpose(0, 2, 1)], whole(), threshold=0.5, most=10
    )
    assert [(thing.label, round(thing.score, 2)) for thing in found] == [(0, 0.9), (1, 0.7), (0, 0.6), (0, 0.55)]


def test_softmax_has_a_class_for_nothing_and_numbers_that_are_none_are_no_things() -> None:
    logits = np.array([[[9.0, 0, 0, 0], [0, 0, 0, 9.0], [np.nan, 0, 0, 0], [0, 9.0, 0, 0]]], np.float32)
    boxes = np.array([[[0.5, 0.5, 2.0, 0.5], [0.5] * 4, [0.5] * 4, [0.5, np.inf, 0.5, 0.5]]], np.float32)
    (thing,) = things_in(
        Looking(**{**DETR, "scores": "softmax"}), [logits, boxes], whole(200, 100), threshold=0.5, most=10
    )
    assert (thing.label, thing.box) == (0, pytest.approx((0, 25, 200, 75))), "a box ends with the picture"


def test_corners_are_taken_as_they_are() -> None:
    logits = np.array([[[9.0, -9, -9]]], np.float32)
    boxes = np.array([[[0.1, 0.2, 0.3, 0.4]]], np.float32)
    (thing,) = things_in(Looking(**{**DETR, "boxes": "xyxy"}), [logits, boxes], whole(), threshold=0.5, most=10)
    assert thing.box == pytest.approx((10, 20, 30, 40), abs=1e-3)
