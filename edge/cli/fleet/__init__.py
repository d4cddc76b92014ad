"""`edge fleet`: the fleet's side. Each command's module is imported only when it is called: some need the extra `fleet`."""

from __future__ import annotations

import importlib

import click

from edge.errors import ConfigurationError

_COMMANDS = {
    "init": ("server", "Make a new fleet's directory: authority, certificates, broker configuration, database."),
    "serve": ("server", "Run the fleet's server: enrollment, page, sink."),
    "token": ("tokens", "Create, list and revoke enrollment tokens."),
    "nodes": ("nodes", "List the nodes."),
    "approve": ("nodes", "Let pending nodes in."),
    "revoke": ("nodes", "Shut nodes out, for good."),
    "audit": ("nodes", "Show who did what."),
    "ca": ("ca", "Look at the certificate authority, and let a new one take over."),
    "admin-key": ("adminkeys", "Create, list and revoke keys of those who may administer."),
    "sink": ("uplink", "Keep what nodes tell in a SQLite file, without the rest of the server."),
    "key": ("uplink", "Make a key pair for commands."),
    "command": ("uplink", "Have a node carry out a command."),
}
_NAMES = {"command": "send", "admin-key": "admin_key", "token": "token"}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        try:
            module = importlib.import_module(f"edge.cli.fleet.{_COMMANDS[cmd_name][0]}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("sqlalchemy", "alembic"):
                raise
            raise ConfigurationError(
                f"`edge fleet {cmd_name}` needs the package {error.name}: install edge with the extra `fleet`, "
                "`pip install 'edge-node[fleet]'` or `make install EXTRA=fleet` in a checkout"
            ) from None
        command = getattr(module, _NAMES.get(cmd_name, cmd_name))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """The fleet's side: lets nodes in and out, keeps what they tell, shows them, and commands them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
