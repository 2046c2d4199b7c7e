"""The command line: one file per verb. Nothing heavy is imported until a command runs."""

import logging
import sys
from collections.abc import Iterable
from types import ModuleType

import typer
from typer.core import TyperGroup

from gendistill.cli import convert, distill, doctor, evaluate, inspect, place, plan, run, show_batch, synthesize
from gendistill.errors import UserError
from gendistill.names import look_up

# Libraries that warn, while they are imported, of things that no user of a command can change: torchao of its own
# extensions for other GPUs, torch of torchao's way to register them.
CHATTY = ("torchao", "torch.utils._pytree")

# In the order of --help. A verb is a module of this package with a function `command`, and is called by its name.
VERBS = [plan, run, place, synthesize, show_batch, convert, distill, evaluate, inspect, doctor]


class _Verbs(TyperGroup):
    def resolve_command(self, ctx, args):
        look_up(self.commands, args[0], "verb")  # typer's own error names the nearest at best
        return super().resolve_command(ctx, args)


def make_app(verbs: Iterable[ModuleType]) -> typer.Typer:
    """The command line with these verbs."""
    app = typer.Typer(
        cls=_Verbs,
        help="Turn a pretrained Transformer language model into a fast hybrid that still answers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # a traceback that is a bug report, not a page of boxes
    )
    for verb in verbs:
        # "gendistill.cli.show_batch" is called as show-batch.
        name = verb.__name__.rpartition(".")[-1].replace("_", "-")
        app.command(name)(verb.command)
    return app


app = make_app(VERBS)


def main() -> None:
    """Entry point: user errors are printed alone, everything else is a bug and keeps its traceback."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app()
    except UserError as error:
        print(f"gendistill: {error}", file=sys.stderr)
        sys.exit(2)  # as for an unknown option
    except KeyboardInterrupt:
        print("gendistill: interrupted; the same command resumes from here", file=sys.stderr)
        sys.exit(130)  # what shells report of a program that SIGINT has ended
