"""The command line: one file per verb. Nothing heavy is imported until a command runs."""

import sys

import typer

from gendistill.cli import convert, distill, doctor, evaluate, inspect, plan, run, show_batch, synthesize
from gendistill.errors import UserError

app = typer.Typer(
    help="Turn a pretrained Transformer language model into a fast hybrid that still answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
verbs = {"plan": plan, "run": run, "synthesize": synthesize, "show-batch": show_batch, "convert": convert}
verbs |= {"distill": distill, "evaluate": evaluate, "inspect": inspect, "doctor": doctor}
for name, verb in verbs.items():
    app.command(name)(verb.command)


def main() -> None:
    """Entry point: user errors are printed alone, everything else is a bug and keeps its traceback."""
    try:
        app()
    except UserError as error:
        print(f"gendistill: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("gendistill: interrupted; the same command resumes from here", file=sys.stderr)
        sys.exit(130)
