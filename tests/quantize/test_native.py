"""What is read from libllama: its graph's tensors, its log, its logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.engine.llama.importance import add_chosen, add_plain, means
from edge.engine.llama.quantizer import QuantizerLog
from edge.engine.llama.reading import rows_of_a_pass
from edge.engine.llama.tensor import operations

from .conftest import BUILTIN


def test_the_layout_of_tensors_is_the_library_s_own() -> None:
    product, chosen = operations()
    assert 0 < product < chosen


def test_squares_of_a_plain_product_are_added_by_column() -> None:
    total, rows = np.zeros((1, 2)), np.zeros(1, np.int64)
    squares = np.array([[[[1.0, 4.0], [9.0, 16.0]]]])
    add_plain(total, rows, squares)
    add_plain(total, rows, squares)
    assert total.tolist() == [[20.0, 40.0]] and rows.tolist() == [4]
    assert means(total, rows).tolist() == [5.0, 10.0]


def test_squares_go_to_the_experts_that_were_chosen() -> None:
    total, rows = np.zeros((3, 2)), np.zeros(3, np.int64)
    shared = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])  # two tokens, the same input for both of their experts
    add_chosen(total, rows, shared, np.array([[0, 1], [1, 0]], np.int32))
    assert total.tolist() == [[4.0, 6.0], [4.0, 6.0], [0.0, 0.0]] and rows.tolist() == [2, 2, 0]
    own = np.array([[[10.0, 0.0], [0.0, 20.0]]])  # one token, an input for each of its experts
    add_chosen(total, rows, own, np.array([[2, 0]], np.int32))
    assert total.tolist() == [[4.0, 26.0], [4.0, 6.0], [10.0, 0.0]] and rows.tolist() == [3, 2, 1]


def test_an_expert_that_nobody_chose_counts_all_columns_alike() -> None:
    assert means(np.array([[8.0, 2.0], [0.0, 0.0]]), np.array([2, 0])).tolist() == [4.0, 1.0, 1.0, 1.0]


def test_the_log_tells_types_fall_backs_and_sizes() -> None:
    shares: list[float] = []
    log = QuantizerLog(shares.append)
    for piece in (
        "warning: blk.0.attn_q.weight              - ncols    192 not divisible by 256 (required for type    q4_K) ",
        "-> falling back to    q5_0\n",
        "[   1/   4] output_norm.weight - [   192,      1,      1,      1], type =    f32, ",
        "size =    0.001 MiB\n",
        "[   2/   4] blk.0.attn_q.weight - [   192,    192,      1,      1], type =    f16, ",
        "size =     0.07 MiB ->     0.02 MiB (q5_0)\n",
        "llama_model_quantize_impl: model size  =     1.50 MiB (16.00 BPW)\n",
        "llama_model_quantize_impl: quant size  =     0.50 MiB (5.33 BPW)\n",
    ):
        log.line(piece)
    found = log.outcome
    assert found.types_before == {"output_norm.weight": "f32", "blk.0.attn_q.weight": "f16"}
    assert found.types_after == {"output_norm.weight": "f32", "blk.0.attn_q.weight": "q5_0"}
    (fell,) = found.fall_backs
    assert (fell.tensor, fell.columns, fell.wanted, fell.got) == ("blk.0.attn_q.weight", 192, "q4_k", "q5_0")
    assert (found.source_bytes, found.result_bytes) == (3 << 19, 1 << 19)
    assert shares == [0.0, 0.25]


def test_logits_of_large_vocabularies_are_held_in_small_passes() -> None:
    assert rows_of_a_pass(152_000) * 152_000 * 4 <= 48 << 20
    assert rows_of_a_pass(1_500) == 256
    assert rows_of_a_pass(10_000_000) == 16


_MEASURE = """
import sys
from pathlib import Path
import numpy as np
from edge.engine.llama.importance import ImportanceMeter
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.engine.llama.reading import ReadingContext
library = Library()
model = Model(library, Path(sys.argv[1]), gpu_layers=0)
meter = ImportanceMeter()
reader = ReadingContext(library, model, context_tokens=256, threads=1, observer=meter.observe)
for _ in reader.read(list(range(40, 296))):
    pass
columns = meter.columns()
print(meter.failure)
for name in sorted(columns):
    values = columns[name]
    print(name, values.size, bool((values > 0).all()), bool(np.isfinite(values).all()))
"""


def measured(path: Path) -> dict[str, list[str]]:
    """What a process of its own measures: libllama's log may have one owner only."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    failure, *lines = done.stdout.splitlines()
    assert failure == "None"
    return {name: rest for name, *rest in map(str.split, lines)}


def test_every_weight_of_every_layer_is_measured() -> None:
    found = measured(BUILTIN)
    parts = {"attn_q": 256, "attn_k": 256, "attn_v": 256, "attn_output": 256, "ffn_gate": 256, "ffn_up": 256}
    wanted = {**parts, "ffn_down": 768}
    assert found == {
        f"blk.{layer}.{name}.weight": [str(size), "True", "True"] for layer in range(5) for name, size in wanted.items()
    }


def test_every_expert_is_measured(shaped: dict[str, Path]) -> None:
    found = measured(shaped["tinymoe"])
    for layer in range(2):
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            assert found[f"blk.{layer}.{name}.weight"] == [str(256 * 4), "True", "True"]


@pytest.mark.parametrize("whole", [True, False])
def test_reading_in_passes_gives_the_logits_of_reading_at_once(whole: bool) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy as np
from edge.engine.llama.reading import ReadingContext
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
library = Library()
model = Model(library, Path(sys.argv[1]), gpu_layers=0, mapped={whole})
found = []
for rows in (256, 16):
    reader = ReadingContext(library, model, context_tokens=128, threads=1, most_rows=rows)
    tokens, logits = list(range(50, 150)), []
    for positions in reader.read(tokens):
        logits += [reader.logits(position).copy() for position in positions]
    assert len(logits) == len(tokens)
    found.append(np.array(logits))
    reader.close()
print(float(np.abs(found[0] - found[1]).max()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(BUILTIN)], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout) < 0.05


_THREADS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.quantize.compare import threads_for
library = Library()
model = Model(library, Path(sys.argv[1]), gpu_layers=0)
asked = threads_for(SimpleNamespace(threads=64, threads_free=False), library, model)
for _ in range(5):  # whatever else runs here may spoil one measurement, or two
    measured = threads_for(SimpleNamespace(threads=64, threads_free=True), library, model)
    if measured.decode < 63:
        break
for found in (asked, measured):
    print(found.decode, found.prefill)
"""


def test_nobody_waits_for_threads_that_make_it_slower() -> None:
    """64 threads for 4 million parameters: whatever this machine has, fewer are faster; who asks for them gets them."""
    done = subprocess.run(
        [sys.executable, "-c", _THREADS, str(BUILTIN)], capture_output=True, text=True, timeout=240, check=True
    )
    asked, measured = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert asked == (64, 64)
    assert measured[0] < 63
