"""The command line: one file per verb. Nothing heavy is imported until a command runs."""

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from typer.core import TyperGroup

from gendistill import __version__
from gendistill.cli import (
    ablate,
    bench,
    chat,
    convert,
    distill,
    doctor,
    evaluate,
    export,
    init,
    inspect,
    place,
    plan,
    report,
    run,
    serve,
    show_batch,
    status,
    synthesize,
)
from gendistill.console import prepare_streams
from gendistill.errors import Stopped, UserError
from gendistill.names import look_up
from gendistill.visible import visible

# Libraries that warn, while they are imported, of things that no user of a command can change: torchao of its own
# extensions for other GPUs, torch of torchao's way to register them.
CHATTY = ("torchao", "torch.utils._pytree")

# In the order of --help. A verb is a module of this package with a function `command` and its `EXAMPLES`, and is
# called by its name.
VERBS = [
    init,
    plan,
    run,
    ablate,
    place,
    synthesize,
    show_batch,
    convert,
    distill,
    evaluate,
    bench,
    chat,
    serve,
    export,
    status,
    inspect,
    report,
    doctor,
]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # wherever it is met
# Resume from what an earlier call left.
RESUME = ("run", "ablate", "place", "synthesize", "convert", "distill", "evaluate")


class _Verbs(TyperGroup):
    def invoke(self, ctx):
        # Here: typer would end with the status alone.
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort):  # the second is a Ctrl-C that answers a question
            raise Stopped(f"interrupted{_what_next(ctx.invoked_subcommand)}", 128 + signal.SIGINT) from None

    def resolve_command(self, ctx, args):
        look_up(self.commands, args[0], "verb")  # typer's own error names the nearest at best
        return super().resolve_command(ctx, args)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"gendistill {__version__}")
        raise typer.Exit()


def _options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and leave")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="print errors and warnings only")] = False,
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="print into this file, behind what it holds, in plain lines")
    ] = None,
) -> None:
    """Turn a pretrained Transformer language model into a fast hybrid that still answers."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("the folder that this shell stands in was deleted; change to another one (cd)") from None
    # Errors and warnings go to stderr, and are left there.
    target = Path(os.devnull) if quiet else log_file
    if target is not None:
        try:
            file = open(target, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by the context
        except OSError as error:
            raise UserError(f"--log-file {target}: cannot be written ({error.strerror})") from None
        ctx.with_resource(file)
        ctx.with_resource(redirect_stdout(file))


def make_app(verbs: Iterable[ModuleType]) -> typer.Typer:
    """The command line with these verbs."""
    app = typer.Typer(
        cls=_Verbs,
        help="Turn a pretrained Transformer language model into a fast hybrid that still answers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,  # a traceback that is a bug report, not a page of boxes
    )
    app.callback()(_options)
    for verb in verbs:
        # "gendistill.cli.show_batch" is called as show-batch.
        name = verb.__name__.rpartition(".")[-1].replace("_", "-")
        # A paragraph each, or typer would run them together.
        examples = "\n\n".join(["Examples:", *getattr(verb, "EXAMPLES", ())])
        app.command(name, epilog=examples)(verb.command)
    return app


app = make_app(VERBS)


def _what_next(verb: str | None) -> str:
    return "; what is whole is kept, and the same command resumes from there" if verb in RESUME else ""


def _terminate(*_) -> None:
    verb = next((argument for argument in sys.argv[1:] if argument in RESUME), None)
    raise Stopped(f"stopped by SIGTERM{_what_next(verb)}", 128 + signal.SIGTERM)


class _Record(logging.LogRecord):
    """What any library logs, of which the terminal obeys nothing."""

    def getMessage(self) -> str:
        return visible(super().getMessage())


def _print_error(message: str) -> None:
    print(f"gendistill: {visible(message)}", file=sys.stderr)


def _print_traceback(*raised) -> None:
    print(visible("".join(traceback.format_exception(*raised))), end="", file=sys.stderr)


def main() -> None:
    """Entry point: user errors are printed alone, everything else is a bug and keeps its traceback."""
    # As an exception, so that half-written folders are cleared; while it trains, a stage makes a checkpoint first.
    before = signal.signal(signal.SIGTERM, _terminate)
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _print_traceback  # bugs quote what they were given, too
    prepare_streams()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app()
    except UserError as error:
        _print_error(str(error))
        sys.exit(error.code)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise  # a bug: what a user can do about files has errors of its own
        where = f"{error.filename}: " if error.filename else ""
        advice = "Free some space and run the same command again: what is whole is kept"
        _print_error(f"{where}cannot be written ({error.strerror}). {advice}")
        sys.exit(2)
    except Stopped as stop:
        _print_error(str(stop))
        sys.exit(stop.code)
    finally:
        signal.signal(signal.SIGTERM, before)
