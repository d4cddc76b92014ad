"""`edge enroll`: from a token to a managed node."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli.flags import current
from edge.effective import default_home
from edge.errors import (
    ConfigurationError,
    EdgeError,
    EnrollmentFailed,
    EnrollmentPending,
    EnrollmentRefused,
    EnrollmentUnreachable,
    PinMismatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.identity.enroll import Enrolled, Wish
    from edge.identity.identity import Identity
    from edge.identity.store import Store

EXIT_MISUSED = 64
CODES: dict[type[EnrollmentFailed], int] = {
    PinMismatch: 2,
    EnrollmentRefused: 3,
    EnrollmentPending: 4,
    EnrollmentUnreachable: 5,
}
TOKEN_VARIABLE = "EDGE_ENROLL_TOKEN"
_LONGEST_TOKEN_FILE = 4096


class _Misused(click.UsageError):
    exit_code = EXIT_MISUSED


class Misused64(click.Command):
    """Called wrongly it ends with 64, since 2 says here that the fleet's CA is another."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click has it."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _Misused(error.format_message(), error.ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """As click has it."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _Misused(error.format_message(), error.ctx or ctx) from None


@dataclass(frozen=True, slots=True)
class _Given:
    """Where to enroll, with what, and the file whose token is to be erased afterwards."""

    url: str
    token: str = field(repr=False)
    name: str
    seed: Path | None


@click.command(cls=Misused64)
@click.option("--fleet", "url", metavar="URL", help="The fleet's address: https://host[:port].")
@click.option("--token", help="The token. Others can see it with `ps`; rather use one of the next two.")
@click.option("--token-file", metavar="FILE", help="File that holds the token; - for standard input.")
@click.option("--from", "seed", type=click.Path(path_type=Path), metavar="FILE", help="File with `url` and `token` (TOML or JSON), for the first boot; the token is erased once it was used.")  # fmt: skip  # noqa: E501
@click.option("--name", default="", metavar="LABEL", help="How people shall call the node [default: the host name].")
@click.option("--wait", is_flag=True, help="Wait until somebody has approved the node, if the fleet wants that.")
@click.option("--force", is_flag=True, help="Enroll anew although the node is enrolled: new token, new key.")
@click.option("--keep-trying", is_flag=True, help="Whatever is in the way, try until the node is enrolled; with --token-file, which is read anew each time.")  # fmt: skip  # noqa: E501
def command(url: str | None, token: str | None, token_file: str | None, seed: Path | None, name: str, wait: bool, force: bool, keep_trying: bool) -> int:  # fmt: skip  # noqa: E501
    """Make this machine a node of a fleet: key, certificate, settings.

    The token comes from who runs the fleet (edge fleet token create). Without --token, --token-file and --from it is taken from
    EDGE_ENROLL_TOKEN. May be interrupted at any point and called again; a node that is enrolled stays as it is.

    Ends with 0 enrolled, now or before; 2 the fleet is not the one that the token names; 3 the token is refused; 4 somebody has
    to approve the node; 5 the fleet cannot be reached; 64 called wrongly; 78 this machine or its settings stand in the way; 1
    anything else.
    """
    from edge.identity.owner import become, other_owner, roots_own

    home = default_home(os.environ)
    if keep_trying:
        if not url or token_file in (None, "-") or token is not None or seed is not None or force:
            raise click.UsageError("--keep-trying goes with --fleet URL and --token-file FILE, and with --name")
        if (owner := other_owner(home)) is not None:
            become(owner, home)
        return _keep_trying(url, Path(str(token_file)), name, home)
    given = _given(url, token, token_file, seed, name)
    if (owner := other_owner(home)) is not None:
        # The token's file was read by root. To erase it there root must stay, in a process that touches nothing else.
        place = roots_own(given.seed) if given.seed is not None else None
        if place is not None and given.token:
            code = _in_child()
            if code is not None:
                if code == 0:
                    _erase(place)
                return code
            given = replace(given, seed=None)
        become(owner, home)
    return _run(given, home, force, wait)


def _keep_trying(url: str, token_file: Path, name: str, home: Path) -> int:
    """Ends well only. The token is asked for only while there is no identity: it may be gone afterwards."""
    from edge.cli.patience import Obstacle, keep_trying
    from edge.identity.est import origin
    from edge.identity.identity import IdentityDamaged
    from edge.identity.store import Store

    store, told = Store(home), set[str]()
    try:
        fleet = origin(url)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    def say_once(text: str) -> None:
        if text not in told:
            told.add(text)
            click.echo(f"{text} ...", err=True)

    def attempt() -> Obstacle | None:
        try:
            if (identity := store.current()) is not None:
                _tell(identity, already=True)
                if identity.fleet_url != fleet:
                    click.echo(
                        f"edge: it stays there and does not go to {fleet}: that takes --force and a token", err=True
                    )
                return None
            wish = _wish(_Given(url, _from_file(str(token_file)), name, None), force=False, wait=False)
            enrolled = _ask(wish, store, say_once)
        except click.UsageError as error:
            return Obstacle(error.format_message(), passes=False)
        except EdgeError as error:
            passes = not isinstance(error, EnrollmentRefused | PinMismatch | IdentityDamaged)
            return Obstacle(error.message, passes, error.retry_after_s or 0.0)
        _tell_all(enrolled, store)
        return None

    def token() -> str:
        try:
            return _from_file(str(token_file))
        except click.UsageError:
            return ""

    keep_trying(attempt, token, lambda text: click.echo(f"edge: {text}", err=True), random.random)
    return 0


def _in_child() -> int | None:
    """None in the child, which goes on; for the parent how it ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        return None
    return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _run(given: _Given, home: Path, force: bool, wait: bool) -> int:
    from edge.identity.store import Store

    store = Store(home)
    if not given.token and not force and (identity := store.current()) is not None:
        _tell(identity, already=True)
        return 0
    if not given.token:
        raise click.UsageError(
            f"{given.seed} has no token any more, and this node is not enrolled: have a new token made"
            if given.seed is not None
            else f"give a token: --token-file FILE, --from FILE, --token, or {TOKEN_VARIABLE}"
        )
    return _enroll(_wish(given, force, wait), store, given.seed)


def _given(url: str | None, token: str | None, token_file: str | None, seed: Path | None, name: str) -> _Given:
    if sum(one is not None for one in (token, token_file, seed)) > 1:
        raise click.UsageError("give the token once: --token, --token-file or --from")
    if seed is not None:
        from edge.identity.firstboot import read_seed

        if url is not None:
            raise click.UsageError("--from FILE says the fleet's address too; leave --fleet out")
        found = read_seed(seed)
        return _Given(found.url, found.token, name or found.name, seed)
    if token_file is not None:
        token = _from_file(token_file)
    return _Given(url or "", token or os.environ.get(TOKEN_VARIABLE, ""), name, None)


def _from_file(name: str) -> str:
    try:
        if name == "-":
            text = sys.stdin.read(_LONGEST_TOKEN_FILE)
        else:
            with Path(name).open(encoding="ascii") as file:
                text = file.read(_LONGEST_TOKEN_FILE)
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise click.UsageError(f"--token-file {name} cannot be read: {said}") from None
    if not text.strip():
        raise click.UsageError(f"--token-file {name} is empty")
    return text


def _wish(given: _Given, force: bool, wait: bool) -> Wish:
    from edge.identity.enroll import Wish
    from edge.identity.est import origin
    from edge.identity.token import EnrollmentToken

    if not given.url:
        raise click.UsageError("give the fleet's address: --fleet https://host[:port]")
    try:
        return Wish(
            origin(given.url),
            EnrollmentToken.parse(given.token),
            given.name or socket.gethostname().partition(".")[0] or "node",
            force=force,
            wait=wait,
        )
    except (ValueError, ConfigurationError) as error:
        raise click.UsageError(str(error)) from None


def _ask(wish: Wish, store: Store, say: Callable[[str], None]) -> Enrolled:
    from edge.identity.enroll import enroll
    from edge.telemetry.clock import SystemClock

    return asyncio.run(enroll(wish, store, SystemClock(trusted=_trusts_clock()), say))


def _enroll(wish: Wish, store: Store, seed: Path | None) -> int:
    try:
        enrolled = _ask(wish, store, lambda text: click.echo(f"{text} ...", err=True))
    except EnrollmentFailed as failed:
        click.echo(f"edge: {failed.message}", err=True)
        return next((code for kind, code in CODES.items() if isinstance(failed, kind)), 1)
    if seed is not None:
        _erase(seed)
    _tell_all(enrolled, store)
    return 0


def _erase(seed: Path) -> None:
    from edge.identity.firstboot import erase_token

    if wrong := erase_token(seed):
        click.echo(f"edge: the token in {seed} could not be erased ({wrong}): erase it", err=True)


def _trusts_clock() -> bool:
    """A settings file that is wrong hinders nobody from enrolling; it is told of afterwards."""
    try:
        return current().settings.mqtt.trust_clock
    except ConfigurationError:
        return False


def _tell_all(enrolled: Enrolled, store: Store) -> None:
    _tell(enrolled.identity, already=enrolled.already)
    if not enrolled.already:
        _tell_settings(enrolled.identity, store)


def _tell(identity: Identity, *, already: bool) -> None:
    life = identity.life
    fleet = f" of {identity.bootstrap.fleet}" if identity.bootstrap is not None else ""
    word = "already, as " if already else ""
    click.echo(f"enrolled  {word}{identity.node}{fleet} at {identity.fleet_url}")
    ends, due = (datetime.fromtimestamp(at_s, UTC) for at_s in (life.ends_s, life.due_s))
    click.echo(f"          certificate until {ends:%Y-%m-%d}; a running node renews it from {due:%Y-%m-%d} on")
    if already:
        click.echo("          to change its key: edge identity renew; to enroll it anew: --force and a new token")


def _tell_settings(identity: Identity, store: Store) -> None:
    """What changed for the node, and whether its broker lets it in."""
    from edge.identity.trial import try_broker, uses_identity

    click.echo(f"files     {identity.directory}, for this user's eyes only")
    if identity.bootstrap is None:
        click.echo("settings  this server has no bootstrap (it is another EST server): set [mqtt] and [fleet] yourself")
        return
    try:
        effective = current()
    except ConfigurationError as error:
        click.echo(f"edge: {error.message}; until that is corrected no node starts here", err=True)
        return
    told = [key for key, origin in effective.origins.items() if origin.source == "enrollment"]
    click.echo(f"settings  {', '.join(told)} (see `edge settings --changed`)")
    mqtt = effective.settings.mqtt
    if uses_identity(mqtt):
        wrong = try_broker(mqtt, effective.home, identity.directory, lambda: False)
        if wrong:
            click.echo(f"broker    not reached: {wrong}; a running node goes on trying")
        else:
            click.echo(f"broker    {mqtt.url} lets this node in")
    elif mqtt.url:
        click.echo(f"broker    {mqtt.url}, as {effective.origins['mqtt.url'].where} has it; not tried")
    click.echo("next      edge serve; a node that runs already starts anew by itself, within seconds")
