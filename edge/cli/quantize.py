"""`edge quantize`: a model in fewer bits, and what that cost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import click
import msgspec
from rich.console import Console
from rich.status import Status

from edge.cli.quantized import show
from edge.effective import default_home
from edge.machine import usable_cores
from edge.quantize.kinds import KINDS, ONNX_KINDS, Choice
from edge.quantize.run import Wish, quantize
from edge.registry.resolve import Registry, model_directories

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("source", metavar="SRC", type=_FILE)
@click.argument("target", metavar="DST", type=_FILE)
@click.option(
    "--to",
    "kind",
    type=click.Choice([*KINDS, *ONNX_KINDS]),
    metavar="FORMAT",
    required=True,
    help=f"Number format to write. GGUF: {', '.join(KINDS)}. ONNX: {', '.join(ONNX_KINDS)}.",
)
@click.option(
    "--imatrix",
    type=click.Choice(["auto", "on", "off"]),
    metavar="WHEN",
    default="auto",
    help="Measure on a text which weights matter, and round the others more: auto (where the format gains by it), on, off "
    "[default: auto].",
)
@click.option(
    "--text",
    type=_FILE,
    help="Your own text: half of it calibrates, the other half is measured on [default: a text of the package, or the task's].",
)
@click.option("--calibration", type=_FILE, help="A text to calibrate with, so that all of --text is measured on.")
@click.option("--tokenizer", type=_FILE, help="Of an ONNX model [default: the tokenizer.json beside it].")
@click.option(
    "--block",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="int4-onnx: how many weights share a scale, 32 or 128 [default: 32].",
)
@click.option(
    "--manifest", type=_FILE, help="Manifest that names a task [default: the one whose name is the model's own]."
)
@click.option(
    "--tokens",
    type=click.IntRange(512),
    metavar="NUMBER",
    default=8192,
    help="Most tokens of either text [default: 8192].",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 512),
    metavar="NUMBER",
    help="Threads [default: all cores, or fewer where more are slower].",
)
@click.option("--force", is_flag=True, help="Replace DST if it exists.")
@click.option("--allow-requantize", is_flag=True, help="Accept a source that is quantized already.")
@click.option("--no-report", is_flag=True, help="Write only; do not compare.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def command(
    source: Path,
    target: Path,
    kind: str,
    imatrix: str,
    text: Path | None,
    calibration: Path | None,
    tokenizer: Path | None,
    block: int | None,
    manifest: Path | None,
    tokens: int,
    threads: int | None,
    force: bool,
    allow_requantize: bool,
    no_report: bool,
    as_json: bool,
) -> None:
    """Write the model SRC in fewer bits to DST, and say what that cost. Of a GGUF file: size, how far the predictions moved (KL
    divergence, top-1 agreement, perplexity), and how many cases of the model's task still come out right. Of an ONNX file: size,
    cosine of the embeddings or top-1 agreement of the scores, and the time of one sentence.

    mxfp4 is for mixture-of-experts models only. ONNX formats need the extra `quantize`. DST appears when it is whole; SRC is not
    changed.
    """
    home = default_home(os.environ)
    wish = Wish(
        source=source.expanduser(),
        target=target.expanduser(),
        kind=kind,
        importance=cast(Choice, imatrix),
        text=text,
        calibration=calibration,
        manifest=manifest,
        most_tokens=tokens,
        threads=threads or usable_cores(),
        threads_free=threads is None,
        force=force,
        allow_requantize=allow_requantize,
        report=not no_report,
        tokenizer=tokenizer,
        block=block,
    )
    manifests = Registry(model_directories(home), home / "verified.json").manifests()
    begun = time.time()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidied up after like Ctrl-C
    try:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        with console.status("starting ...") as status:
            report = quantize(wish, manifests, _teller(console, status))
    except KeyboardInterrupt:
        written = wish.target.exists() and wish.target.stat().st_mtime >= begun
        what = "is written and whole, the report is not finished" if written else "was not written"
        raise KeyboardInterrupt(f"interrupted: {wish.target} {what}") from None
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=1))
    else:
        show(report)


def _teller(console: Console, status: Status) -> Callable[[str, float], None]:
    """Shows how far it is: in one line of a terminal, elsewhere a line for each stage, since it may take long."""
    said = ""

    def tell(stage: str, share: float) -> None:
        nonlocal said
        status.update(f"{stage} {share:.0%}")
        if stage != said and not console.is_terminal:
            console.print(f"{stage} ...")
        said = stage

    return tell
