"""Pictures as detectors take them. The only module that imports Pillow.

A file is untrusted: its format and its size in pixels are looked at before anything is decoded, and what is decoded is bounded.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # the bound is ours: onnx.most_picture_mpx
except ModuleNotFoundError:
    Image = None  # type: ignore[assignment]

from edge.errors import InvalidRequest, ModelUnusable
from edge.onnx.messages import Looking

Floats = npt.NDArray[np.float32]

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112
_JPEG, _SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_MARK = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""What begins a segment, or ends the picture."""
_MOST_SCANS = 64
"""Encoders that draw pictures step by step make ten."""
_STRIP = 64
"""Rows."""
_GREY = 114
"""What detectors of the YOLO family were trained to see beside a picture."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture upright, at a model's size. `scale` and `left`, `top`: from its own pixels to those of the model."""

    pixels: Floats
    """[3, height, width], colours as the model wants them."""
    width: int
    height: int
    scale: tuple[float, float]
    left: int = 0
    top: int = 0


def require_pillow() -> None:
    """Raises ModelUnusable unless pictures can be read."""
    if Image is None:
        raise ModelUnusable("Pillow is not installed: pip install 'edge-node[onnx]', or 'edge-node[onnx-gpu]'")


def placed(data: bytes, looking: Looking) -> Placed:
    """Read a file and bring it to a model's size. Raises InvalidRequest for what is no picture, or too large a one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd in a client's file is no news
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _require_size(image, looking)
                _require_scans(data)
                return _placed(image, looking)
        except InvalidRequest:
            raise
        except UnidentifiedImageError:
            raise _refused("this is no picture that can be read: send JPEG, PNG or WebP") from None
        except MemoryError:
            raise _refused("the picture is too large for the memory there is; send a smaller one") from None
        except Exception as error:  # decoders raise whatever a broken file leads them to
            raise _refused(f"the picture cannot be read: {str(error)[:200]}") from None


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(why, param="image")


def _require_size(image: Any, looking: Looking) -> None:
    width, height = image.size
    if width * height > looking.most_pixels:
        raise _refused(
            f"the picture has {width:,} x {height:,} pixels; at most {looking.most_pixels / 1e6:,.1f} million are read "
            "(onnx.most_picture_mpx)"
        )


def _require_scans(data: bytes) -> None:
    """A JPEG's scan of some bytes may go over every pixel once more, all of them in one call that nothing ends."""
    scans, at = 0, len(_JPEG)
    while data.startswith(_JPEG) and (mark := _MARK.search(data, at)) is not None and mark[0] != _END:
        scans += mark[0] == _SCAN
        if scans > _MOST_SCANS:
            raise _refused(f"the picture is drawn in more than {_MOST_SCANS} passes; save it anew")
        at = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")  # thumbnails are within segments


def _placed(image: Any, looking: Looking) -> Placed:
    turn = image.getexif().get(_ORIENTATION, 1)
    aside = turn in (5, 6, 7, 8)
    width, height = image.size[::-1] if aside else image.size
    inner_width, inner_height, left, top = _fit(width, height, looking)
    target = (inner_height, inner_width) if aside else (inner_width, inner_height)
    image.draft("RGB", target)  # a JPEG is decoded at an eighth of its size where that is enough
    small = _upright(_opaque(_plain(image).resize(target, Image.Resampling.BILINEAR)), turn)
    if (inner_width, inner_height) != (looking.width, looking.height):
        whole = Image.new("RGB", (looking.width, looking.height), (_GREY, _GREY, _GREY))
        whole.paste(small, (left, top))
        small = whole
    colours = np.asarray(small, np.float32) / 255
    normed = (colours - np.array(looking.mean, np.float32)) / np.array(looking.std, np.float32)
    pixels = np.ascontiguousarray(normed.transpose(2, 0, 1), np.float32)
    return Placed(pixels, width, height, (inner_width / width, inner_height / height), left, top)


def _fit(width: int, height: int, looking: Looking) -> tuple[int, int, int, int]:
    """(width, height, left, top) of the picture in the model's."""
    if looking.fit == "stretch":
        return looking.width, looking.height, 0, 0
    scale = min(looking.width / width, looking.height / height)
    inner_width = min(looking.width, max(1, round(width * scale)))
    inner_height = min(looking.height, max(1, round(height * scale)))
    return inner_width, inner_height, (looking.width - inner_width) // 2, (looking.height - inner_height) // 2


def _plain(image: Any) -> Any:
    """In a mode that can be made smaller. A whole picture lies in memory: it is copied only where that must be, and once."""
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if "transparency" in image.info:
        clear = image.convert("RGBA")
        image.close()  # its pixels are not needed beside those
        return clear
    return image if image.mode in ("RGB", "RGBA", "L", "LA") else image.convert("RGB")


def _eight_bits(image: Any) -> Any:
    """Of sixteen bits of grey, a strip at a time."""
    width, height = image.size
    grey = Image.new("L", (width, height))
    for top in range(0, height, _STRIP):
        strip = np.asarray(image.crop((0, top, width, min(height, top + _STRIP))))
        grey.paste(Image.fromarray((strip.astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)), (0, top))
    return grey


def _opaque(image: Any) -> Any:
    """In three colours; what shines through is white."""
    if image.mode in ("RGBA", "LA"):
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _upright(image: Any, turn: int) -> Any:
    """As the camera was held."""
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(turn)
    return image.transpose(turned) if turned is not None else image
