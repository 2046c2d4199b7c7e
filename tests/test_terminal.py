"""What comes from data, files, templates and models steers no terminal, by whatever way it is printed."""

import ast
import io
import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from rich.progress import Progress, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import gendistill
from cli_tools import RECIPE, in_process
from gendistill.cli import _Record
from gendistill.console import Console
from gendistill.visible import visible

HOSTILE = {
    "colour": "\x1b[31m",
    "title of the window": "\x1b]0;owned\x07",
    "a link": "\x1b]8;;http://x\x1b\\",
    "C1": "\x9b2J",
    "over the line": "x\rdone",
    "backspace": "x\x08",
    "direction": "\u202etxt.exe",
    "isolate": "\u2066",
    "line separator": "\u2028",
    "loose byte of a file's name": "\udcff",
    "delete": "\x7f",
}
ALL = "".join(HOSTILE.values())
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udcff]")


def test_text_is_shown_with_what_would_steer_as_numbers():
    assert visible(HOSTILE["colour"]) == "⟨U+001B⟩[31m"
    for text in HOSTILE.values():
        assert not STEERS.search(visible(text))
        assert re.search(r"⟨U\+[0-9A-F]{4}⟩", visible(text))


@pytest.mark.parametrize("text", ["plain", "two\n\tlines", "naïve 日本 👩\u200d🚀", "نمی\u200cخواهم", "no\xa0break"])
def test_honest_text_stays(text):
    assert visible(text) == text


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize(
    "printed",
    [
        lambda: ALL,
        lambda: Text(ALL, "bold"),
        lambda: Rule(ALL),
        lambda: _table(ALL),
        lambda: _table(Text(ALL)),
    ],
    ids="string text rule cell styled-cell".split(),
)
def test_the_console_obeys_nothing_of_what_it_prints(printed, is_terminal):
    file = io.StringIO()
    Console(file=file, width=400, force_terminal=is_terminal, color_system=None).print(printed())
    assert not STEERS.search(re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue(), count=0 if is_terminal else 1))
    assert "\x1b[31m" not in file.getvalue() and "U+001B" in file.getvalue()


def test_a_progress_bar_obeys_nothing_of_its_title():
    file = io.StringIO()
    with Progress(TextColumn("{task.description}", markup=False), console=Console(file=file, width=400)) as progress:
        progress.add_task("[red]x[/nothing] \x1b[31m \u202e")
    assert file.getvalue().startswith("[red]x[/nothing] ⟨U+00")  # cut, since rich measures before
    assert not STEERS.search(file.getvalue())
    assert not STEERS.search(file.getvalue())


def test_the_console_takes_no_markup():
    file = io.StringIO()
    Console(file=file, width=100).print("[bold]a[/b] :smile: [link=http://x]", _table("[red]b"))
    assert file.getvalue().splitlines()[0] == "[bold]a[/b] :smile: [link=http://x]"
    assert "[red]b" in file.getvalue()


def _table(cell):
    table = Table("column")
    table.add_row(cell)
    return table


def test_what_libraries_log_is_shown():
    record = _Record("name", logging.WARNING, "", 0, "skipped: %s", (ALL,), None)
    assert not STEERS.search(logging.Formatter().format(record))


FIELDS = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe, folder: recipe.update({ALL: 1}),
        lambda recipe, folder: recipe.update(teacher="./" + ALL.replace("/", "")),
        lambda recipe, folder: recipe["data"].update(text=[_file(folder, [{ALL: "x"}])]),
        lambda recipe, folder: recipe["data"].update(
            instructions=[
                _file(folder, [{"messages": [{"role": ALL.rstrip("\x7f\udcff"), "content": "x"}]}])
                | {"messages": "messages"}
            ]
        ),
        lambda recipe, folder: recipe["evaluation"]["tasks"]["facts"].update(_file(folder, [{ALL: "x"}])),
    ],
    ids="key teacher field role task-field".split(),
)
def test_errors_show_what_they_quote(tmp_path, change):
    recipe = json.loads(json.dumps(RECIPE))
    change(recipe, tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=False), encoding="utf-8")
    code, output = in_process(
        "show-batch", str(path), "--stage", "instruction_distillation", "--output", tmp_path / "run"
    )
    if code == 0:
        code, output = in_process("run", str(path), "--output", tmp_path / "run")
    assert code == 2, output
    assert "Traceback" not in output, output
    assert not STEERS.search(output), ascii(output)
    assert "U+001B" in output or "\\x1b" in output, output


def _file(folder, records):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"path": str(path)}


JSON_OR_ERRORS = ("__init__", "inspect", "status")


def test_everything_is_printed_by_that_console():
    """Only errors and lines of ASCII JSON are printed otherwise; what the sandbox's programs print, nobody sees."""
    source = Path(gendistill.__file__).parent
    allowed = {"console.py": {"rich.console"}} | {f"cli/{verb}.py": {"print"} for verb in JSON_OR_ERRORS}
    allowed["cli/init.py"] = {"print"}  # a file: YAML, or JSON
    found = {}
    for path in source.rglob("*.py"):
        name = path.relative_to(source).as_posix()
        if name.startswith("sandbox/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module == "rich.console" or _takes_console(node)):
                found.setdefault(name, set()).add("rich.console")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write"):
                found.setdefault(name, set()).add("print")
    assert found == allowed


def _takes_console(node):
    return node.module == "rich" and any(alias.name == "console" for alias in node.names)
