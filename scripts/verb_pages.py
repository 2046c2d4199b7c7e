"""Writes docs/verbs/: a page for each verb from the command line's own help, and the table of verbs on their index.

    python scripts/verb_pages.py

What a verb takes is said once, in src/gendistill/cli/; here stands only where to read on.
"""

from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from gendistill.cli import VERBS, app

FOLDER = Path(__file__).resolve().parents[1] / "docs/verbs"
CLI = typer.main.get_command(app)
EXAMPLES = {verb.__name__.rpartition(".")[-1].replace("_", "-"): verb.EXAMPLES for verb in VERBS}


# Where to read on, of each verb.
READ_ON = {
    "init": "[A run of a model](../run.md).",
    "plan": "What each setting means: [recipes](../recipes.md).",
    "run": "Step by step: [tutorial](../tutorial.md). What it writes: [reading the report](../reading-the-report.md).",
    "ablate": "[Ablations](../ablate.md).",
    "place": "[Which layers keep attention](../placement.md), [choosing layers and windows](../choosing-layers.md).",
    "synthesize": "[Data that the teacher writes](../data.md).",
    "show-batch": "[Data](../data.md), [choosing data](../choosing-data.md).",
    "convert": "[Choosing layers and windows](../choosing-layers.md).",
    "distill": "[Recipes](../recipes.md), [on-policy stages](../on-policy.md).",
    "evaluate": "[Evaluation](../evaluation.md), [tasks](../tasks.md), [long contexts](../evaluation-long-context.md).",
    "bench": "[How fast, and how fast it could be](../bench.md).",
    "chat": "[Chat](../chat.md).",
    "serve": "[Serve](../serve.md).",
    "export": "[A student that others can load](../export.md).",
    "status": "[Reading the report](../reading-the-report.md).",
    "inspect": "All conditions: [evaluation](../evaluation.md#looking-at-items).",
    "report": "[The report as a page](../report.md).",
    "doctor": "[Numerics](../numerics.md).",
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """Every page's text by its file."""
    verbs = {FOLDER / f"{verb}.md": page(verb, command) for verb, command in CLI.commands.items()}
    return verbs | {FOLDER / "index.md": index()}


def page(verb: str, command: TyperCommand) -> str:
    """The page of one verb; KeyError if READ_ON has no line of it."""
    arguments = [cells for cells in rows(command) if cells[0] == "argument"]
    options = [cells for cells in rows(command) if cells[0] == "option"]
    examples = "\n".join(EXAMPLES[verb])
    parts = [
        f"# {verb}\n\n<!-- written by scripts/verb_pages.py -->",
        command.help,
        f"```sh\n{examples}\n```",
        table(("argument", "meaning"), [(name, meaning) for _, name, meaning, _ in arguments]),
        table(("option", "meaning", "default"), [cells[1:] for cells in options]),
        READ_ON[verb],
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def rows(command: TyperCommand) -> Iterator[tuple[str, str, str, str]]:
    """Of each parameter its kind, name, meaning and default, as cells of a table."""
    context = command.make_context(command.name, [], resilient_parsing=True)
    for parameter in command.params:
        if isinstance(parameter, TyperArgument):
            yield "argument", f"`{parameter.metavar or parameter.name.upper()}`", cell(parameter.help), ""
        elif isinstance(parameter, TyperOption) and parameter.name != "help":
            value = "" if parameter.is_flag else f" {parameter.metavar or parameter.display_type(context)}"
            names = [f"`{name}{value}`" for name in (*parameter.opts, *parameter.secondary_opts)]
            # Within code a bar cannot be escaped.
            yield "option", " ".join(names).replace("|", ", "), cell(parameter.help), default_of(parameter)


def default_of(option: TyperOption) -> str:
    if option.required:
        return "required"
    if option.is_flag:
        return "on" if option.default and option.secondary_opts else ""
    return "" if option.default is None else f"`{option.default}`"


def cell(text: str | None) -> str:
    """Within a table a bar ends a cell."""
    return (text or "").replace("|", "\\|")


def table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A table in Markdown; nothing if it has no rows."""
    if not body:
        return ""
    lines = [header, tuple("---" for _ in header), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def index() -> str:
    """The table of verbs, and what holds for all of them."""
    body = [(f"[{verb}]({verb}.md)", cell(command.help)) for verb, command in CLI.commands.items()]
    parts = [
        "# Commands\n\n<!-- written by scripts/verb_pages.py -->",
        f"{CLI.help} In the order in which they are needed:",
        table(("verb", "does"), body),
        COMMON,
    ]
    return "\n\n".join(parts)


COMMON = """\
## What holds for all of them

- A recipe is a YAML file, or the name of a shipped one (`demo`, `window`). Settings behind it, `dotted.key=value`,
  change it for this call: [recipes](../recipes.md).
- Verbs that work in a run folder take `runs/NAME`, or `--output`. Killed, they resume with the same command. One
  process at a time works in a folder.
- Between `gendistill` and the verb, `--quiet` prints errors and warnings only, `--log-file FILE` prints into a file,
  behind what it holds, and `--version` prints the version.
- In a terminal long work shows bars; in a pipe or a file it prints plain lines, one a minute.

| exit status | means |
| --- | --- |
| 0 | done |
| 1 | `doctor` found something off; from any other verb a bug, whose traceback is the report to send |
| 2 | a mistake in the call, the recipe or the files, told in one message; or no room on the disk |
| 130, 143 | interrupted; stopped by SIGTERM. What is whole is kept |
"""


if __name__ == "__main__":
    main()
