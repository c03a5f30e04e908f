"""`chorus`: parse, load the configuration, run. Commands are loaded when they are called, so that `status` starts fast.

click's own endings are not ours: it turns SIGINT and a broken pipe into exit code 1. Here they are 130 and 141.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from protocol import __version__
from protocol.errors import ProtocolError
from supervisor.cli.context import Invocation
from supervisor.cli.exits import Exit, Failure, failure_of
from supervisor.config import ConfigError

# command: the module that has it, under supervisor.cli
COMMANDS = {
    "up": "up",
    "down": "up",
    "status": "status",
    "start": "fleet",
    "stop": "fleet",
    "restart": "fleet",
    "drain": "fleet",
    "reload": "reload",
    "logs": "logs",
    "events": "events",
    "top": "top",
    "ask": "ask",
    "chat": "chat",
    "team": "team",
    "history": "history",
    "models": "models",
    "key": "key",
    "specialist": "specialist",
    "gateway": "gateway",
    "service": "service",
    "doctor": "doctor",
    "config": "config",
    "completion": "completion",
    "version": "version",
    "help": "help",
}


UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG)  # what a full or closed standard output says


class Commands(click.Group):
    """The group that imports a command's module when it is called."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click sees it: its own ending is exit code 1
            return Exit.BROKEN_PIPE

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"supervisor.cli.{module}"), f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Names the nearest command for one that there is not."""
        if args and args[0] not in COMMANDS and (close := difflib.get_close_matches(args[0], COMMANDS, n=1)):
            ctx.fail(f"there is no command {args[0]!r}: did you mean {close[0]}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `chorus --help`, in our order and not in the alphabet's."""
        rows = [(name, self._short_help(ctx, name)) for name in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _short_help(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str(100) if command else ""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="chorus", message="%(prog)s %(version)s")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="One more configuration file.")
@click.option("--port-base", type=int, help="Specialists listen from this port on.")
@click.option("--backend", help="auto, ollama, openai_compatible or builtin.")
@click.option("--backend-url", help="The model server's address.")
@click.option("--default-model", help="The model that answers unless a specialist has its own.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="When to use colour.")
@click.option("--debug", is_flag=True, help="Show a traceback for every failure.")
@click.pass_context
def chorus(
    ctx: click.Context,
    config_file: Path | None,
    port_base: int | None,
    backend: str | None,
    backend_url: str | None,
    default_model: str | None,
    color: str,
    debug: bool,
) -> None:
    """A local team of AI specialists, each on its own TCP port.

    chorus up                        start the team

    chorus ask apollo "What next?"   one answer from one of them

    chorus team "What next?"         everybody at once
    """
    flags: dict[str, Any] = {
        "port_base": port_base,
        "backend.kind": backend,
        "backend.url": backend_url,
        "backend.model": default_model,
    }
    # click strips colour where there is no terminal, whatever was painted: it is told where that was asked for.
    forced = color == "always" or (color == "auto" and os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR"))
    ctx.color = True if forced else None
    ctx.obj = Invocation(config_file=config_file, flags=flags, environ=os.environ, color=color, debug=debug)


def main() -> NoReturn:
    """The entry point: every ending of the program passes here."""
    words = sys.argv[1:]
    options = words[: words.index("--")] if "--" in words else words
    debug, as_json = "--debug" in options, "--json" in options
    _open_closed_streams()
    try:
        code = chorus.main(standalone_mode=False, prog_name="chorus")
        sys.stdout.flush()
        _exit(code if isinstance(code, int) else Exit.DONE)
    except click.ClickException as error:
        is_usage = isinstance(error, click.UsageError)
        if as_json:
            _tell_program("usage" if is_usage else "failed", error.format_message())
        error.show()
        _exit(Exit.USAGE if is_usage else Exit.FAILED)
    except (KeyboardInterrupt, click.Abort):
        _exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        _exit(Exit.BROKEN_PIPE)
    except ConfigError as error:
        if as_json:
            _tell_program("config", str(error), "chorus config check")
        _say(str(error))
        _exit(Exit.USAGE)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _say(f"error: the output cannot be written: {error.strerror}")
        _exit(Exit.FAILED)
    except (Failure, ProtocolError) as error:
        failure = error if isinstance(error, Failure) else failure_of(error)
        if debug:
            import traceback

            traceback.print_exc()
        _fail(failure, as_json=as_json)


def _open_closed_streams() -> None:
    """Whoever called us may have closed standard output or error: what is said there is lost, and nothing else."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as we live


def _fail(failure: Failure, *, as_json: bool) -> NoReturn:
    if as_json:
        _tell_program(failure.code, failure.sentence, failure.remedy)
    _say(f"error: {failure.sentence}")
    if failure.remedy:
        _say(f"  do: {failure.remedy}")
    _exit(failure.exit_code)


def _tell_program(code: str, message: str, hint: str | None = None) -> None:
    """A failure as one object on standard output, for whoever asked for JSON."""
    report = {"version": 1, "error": {"code": code, "message": message, "hint": hint}}
    try:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    except BrokenPipeError:
        _exit(Exit.BROKEN_PIPE)


def _say(line: str) -> None:
    """A line for people, on standard error; nobody there is no error."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        pass


def _exit(code: int) -> NoReturn:
    """Ends without the interpreter's own flush, which would complain about a broken pipe once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            if stream is sys.stdout and code == Exit.DONE:
                code = Exit.BROKEN_PIPE
    os._exit(code)
