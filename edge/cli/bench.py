"""`edge bench`: flags to a plan, and a report to files."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli.numbers import finite, several
from edge.errors import ConfigurationError

if TYPE_CHECKING:  # `edge bench --help` waits for none of these
    from edge.bench.report import Report
    from edge.bench.run import Plan
    from edge.bench.target import Target
    from edge.bench.workload import Load, LoadKind, Mix

_INTERRUPTED = 130
_MOST_TARGETS = 6
_MOST_CONCURRENT = 1024
_RATES = (0.5, 1.0, 2.0, 4.0)
_DURATION_S = 15.0
_FILE_WIDTH = 100  # columns of the table where there is no terminal


_SECONDS = click.FloatRange(min=0, min_open=True, max=86_400)
_MILLISECONDS = click.FloatRange(min=0, min_open=True, max=1e9)
_COUNT = click.IntRange(min=1, max=100_000)
_WORDS = click.IntRange(min=0, max=100_000)


@click.command()
@click.argument("url", default="http://127.0.0.1:8080/v1")
@click.option(
    "--against", multiple=True, metavar="URL", help="Another server, measured in turns with the first. May be repeated."
)
@click.option(
    "--rate",
    callback=several(float, 10_000),
    metavar="R,R,...",
    help="Open loop: requests a second, Poisson arrivals [default: 0.5,1,2,4].",
)
@click.option(
    "--concurrency",
    callback=several(int, _MOST_CONCURRENT),
    metavar="N,N,...",
    help="Closed loop: requests at a time.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Replay a file: a line each, {at_s, messages or prompt, max_tokens}.",
)
@click.option(
    "--duration", type=_SECONDS, callback=finite, metavar="SECONDS", help="Length of each level [default: 15]."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1, max=100),
    default=1,
    metavar="N",
    help="Go through all levels so many times [default: 1].",
)
@click.option(
    "--slo-ttft-ms",
    type=_MILLISECONDS,
    callback=finite,
    default=50.0,
    metavar="MS",
    help="Longest time to the first token of a good request [default: 50].",
)
@click.option(
    "--slo-itl-ms",
    type=_MILLISECONDS,
    callback=finite,
    default=50.0,
    metavar="MS",
    help="Longest p99 gap between tokens of a good request [default: 50].",
)
@click.option(
    "--mix",
    type=click.Choice(("mixed", "plain")),
    metavar="MIX",
    help="mixed: a shared prefix of 150 words, every fifth prompt 300 words long; plain: neither [default: mixed].",
)
@click.option(
    "--prompt-words",
    type=click.IntRange(min=1, max=100_000),
    metavar="N",
    help="Words of an ordinary prompt, no two alike [default: 20].",
)
@click.option(
    "--shared-prefix-words", type=_WORDS, metavar="N", help="Words of the system prompt that all requests share."
)
@click.option("--long-every", type=_WORDS, metavar="N", help="Every Nth prompt is a long one; 0: none.")
@click.option("--long-words", type=click.IntRange(min=1, max=100_000), metavar="N", help="Words of a long prompt.")
@click.option(
    "--output-tokens",
    type=_COUNT,
    metavar="N",
    help="Tokens to ask for, the end token ignored where a server can [default: 64].",
)
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Same arrivals and words again [default: new ones]."
)
@click.option(
    "--api",
    type=click.Choice(("chat", "completions")),
    default="chat",
    metavar="API",
    help="chat or completions [default: chat].",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="Model to ask for, once for all servers or once for each [default: the first that a server lists].",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    envvar="EDGE_API_KEY",
    metavar="KEY",
    help="API key, once for all servers or once for each, in their order [default: $EDGE_API_KEY].",
)
@click.option("--ca", type=click.Path(path_type=Path), help="PEM file of the CA that signed the servers' certificates.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write everything that was measured."
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with plots, readable without a network.",
)
@click.option(
    "--timeout",
    type=_SECONDS,
    callback=finite,
    default=60.0,
    metavar="SECONDS",
    help="Longest wait for one answer [default: 60].",
)
@click.option(
    "--time-limit",
    type=_SECONDS,
    callback=finite,
    default=3600.0,
    metavar="SECONDS",
    help="Longest run; what was measured by then is shown [default: 3600].",
)
@click.option(
    "--max-requests", type=_COUNT, default=2000, metavar="N", help="Most requests of one level [default: 2000]."
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(min=1, max=_MOST_CONCURRENT),
    default=256,
    metavar="N",
    help="Most requests under way; further ones count as not sent [default: 256].",
)
def command(url: str, against: tuple[str, ...], **options: Any) -> int:
    """Measure how many requests a second a server answers in time: goodput against offered load.

    URL is any OpenAI-compatible address, http://127.0.0.1:8080/v1 if left out, or NAME=URL to name it. Ctrl-C ends a run
    and shows what was measured until then.
    """
    from rich.console import Console

    from edge.bench.run import measure
    from edge.bench.view import ProgressBar, show

    files = [path for path in (options["json_file"], options["html_file"]) if path]
    for path in files:
        _check_writable(path)
    plan = _plan(options)
    targets = _targets((url, *against), plan, options)
    with ProgressBar(Console(stderr=True)) as bar:
        report = measure(plan, targets, bar)
    console = Console(highlight=False)
    show(report, console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH))
    _write(report, options["json_file"], options["html_file"])
    return _INTERRUPTED if report.interrupted and "Ctrl-C" in report.interrupted else 0


def _plan(options: dict[str, Any]) -> Plan:
    """Raises click.UsageError for options that contradict each other, ConfigurationError for a bad trace."""
    from edge.bench.load import Bounds
    from edge.bench.outcome import Slo
    from edge.bench.run import Plan
    from edge.bench.trace import read_trace

    loads = _loads(options)
    mix = _mix(options)
    bounds = Bounds(options["max_requests"], options["max_in_flight"], options["timeout"])
    duration_s = options["duration"] or _DURATION_S
    for load in loads:
        expected = load.value * duration_s
        if load.kind == "rate" and expected + 4 * math.sqrt(expected) > bounds.requests:  # arrivals scatter by the root
            raise click.UsageError(
                f"{load.value:g} requests/s for {duration_s:g} s can be more than {bounds.requests} requests; raise "
                "--max-requests or shorten --duration"
            )
    trace = options["trace"] and read_trace(
        options["trace"], api=options["api"], output_tokens=mix.output_tokens, most_requests=bounds.requests
    )
    return Plan(
        loads=loads,
        mix=mix,
        seed=random.SystemRandom().randrange(1_000_000) if options["seed"] is None else options["seed"],
        duration_s=duration_s,
        rounds=options["rounds"],
        slo=Slo(options["slo_ttft_ms"], options["slo_itl_ms"]),
        bounds=bounds,
        time_limit_s=options["time_limit"],
        trace=tuple(trace or ()),
    )


def _loads(options: dict[str, Any]) -> tuple[Load, ...]:
    from edge.bench.workload import Load

    given = [name for name in ("rate", "concurrency", "trace") if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError(f"--{given[0]} and --{given[1]} are two kinds of load; give one of them")
    if "trace" in given:
        own = ("duration", "mix", "prompt_words", "shared_prefix_words", "long_every", "long_words", "seed")
        for name in own:
            if options[name] is not None:
                flag = f"--{name.replace('_', '-')}"
                raise click.UsageError(f"a trace brings its own arrivals and prompts; leave {flag} out")
        return (Load("trace", 0.0),)
    kind: LoadKind = "concurrency" if "concurrency" in given else "rate"
    return tuple(Load(kind, value) for value in options[kind] or _RATES)


def _mix(options: dict[str, Any]) -> Mix:
    from edge.bench.workload import MIXES

    mix = MIXES[options["mix"] or "mixed"]
    names = ("prompt_words", "shared_prefix_words", "long_every", "long_words", "output_tokens")
    mix = replace(mix, **{name: options[name] for name in names if options[name] is not None})
    if options["long_words"] is not None and mix.long_every == 0:
        raise click.UsageError("--long-words needs --long-every N, which says how many prompts are long")
    if mix.long_every and not mix.long_words:
        raise click.UsageError("--long-every needs --long-words N, which says how long the long prompts are")
    return mix


def _targets(urls: tuple[str, ...], plan: Plan, options: dict[str, Any]) -> list[Target]:
    """Ask every server a first request. Raises EdgeError."""
    from edge.bench.target import Address, find_target

    addresses = [Address.parse(url) for url in urls]
    if len(addresses) > _MOST_TARGETS:
        raise click.UsageError(f"{len(addresses)} servers are more than {_MOST_TARGETS}")
    names = [address.name for address in addresses]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"two servers are called {name!r}; name them: NAME=URL")
    models = _for_each(options["models"], len(addresses), "--model")
    keys = _for_each(options["keys"], len(addresses), "--key")
    first = plan.first_job()
    return [
        find_target(
            address,
            api=options["api"],
            model=model,
            key=key,
            authority=options["ca"],
            timeout_s=plan.bounds.timeout_s,
            first=first,
        )
        for address, model, key in zip(addresses, models, keys, strict=True)
    ]


def _for_each(values: tuple[str, ...], count: int, flag: str) -> list[str]:
    if len(values) not in (0, 1, count):
        raise click.UsageError(
            f"{flag} is given {len(values)} times for {count} servers; give it once, or once for each"
        )
    return list(values or ("",)) * (1 if len(values) == count else count)


def _check_writable(path: Path) -> None:
    """Before minutes of measuring, not after them."""
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}; choose another file") from None


def _write(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    from edge.bench.page import page

    if json_file is not None:
        json_file.write_text(report.model_dump_json() + "\n", "utf-8")
        click.echo(f"wrote {json_file}")
    if html_file is not None:
        html_file.write_text(page(report) + "\n", "utf-8")
        click.echo(f"wrote {html_file}")
