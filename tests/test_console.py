"""What is printed: whole lines in any encoding, and progress without bars where nobody can see them move."""

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest

from gendistill import console
from gendistill.console import Console, Progress

SOURCE = Path(console.__file__).parent


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the monotonic clock, to be set."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_progress_into_a_file_is_a_line_at_once_every_minute_and_at_the_end(clock):
    file = io.StringIO()
    with Progress("teacher, facts", 1000, "answers", Console(file=file, width=20), done=400) as progress:
        for _ in range(60):
            clock[0] += 10
            progress.advance(10, "loss 0.5")
    lines = file.getvalue().splitlines()
    assert lines[:2] == [
        "teacher, facts: 410 of 1,000 answers, loss 0.5, 0:09:50 left",
        "teacher, facts: 470 of 1,000 answers, loss 0.5, 0:08:50 left",
    ]
    assert len(lines) == 11 and lines[-1] == "teacher, facts: 1,000 of 1,000 answers, loss 0.5, 0:00:00 left"


def test_on_a_terminal_there_is_a_bar_and_no_line():
    file = io.StringIO()
    with Progress("teacher, [facts]", 2, "answers", Console(file=file, force_terminal=True, width=100)) as progress:
        progress.advance(note="loss 0.5")
    shown = file.getvalue()
    assert "\x1b[" in shown and "teacher, [facts]" in shown and "answers" not in shown
    quiet = io.StringIO()
    with Progress("x", 1, "answers", Console(file=quiet, force_terminal=True, quiet=True)) as progress:
        progress.advance()
    assert quiet.getvalue() == ""


def test_texts_are_printed_as_they_are():
    file = io.StringIO()
    path = "/data/[2026]/" + "folder/" * 30
    Console(file=file, width=80).print(f"records: {path}")
    assert file.getvalue() == f"records: {path}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_ends_a_command(encoding):
    program = (
        "from gendistill.console import Console, prepare_streams; from rich.table import Table; prepare_streams();"
        "table = Table('name…'); table.add_row('1 – 2 ± 3 × 漢');"
        "Console().print(table); Console().print('a – b → 漢')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, env={"PYTHONIOENCODING": encoding} | PATHS
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    shown = done.stdout.decode(encoding)
    expected = {
        "ascii": ["name...", "1 - 2 +- 3 x ?", "a - b -> ?"],
        "latin-1": ["name...", "1 - 2 ± 3 × ?", "a - b -> ?"],
        "utf-8": ["name…", "1 – 2 ± 3 × 漢", "a – b → 漢"],
    }
    assert all(text in shown for text in expected[encoding]), shown


PATHS = {"PYTHONPATH": str(SOURCE.parent)}


def test_nobody_else_makes_a_console_or_a_bar():
    """Else the next verb has bars in a log file again, or breaks a path."""
    others = []
    for path in SOURCE.rglob("*.py"):
        if path == SOURCE / "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.progress":
                others.append(f"{path}:{node.lineno}: imports rich.progress")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                others.append(f"{path}:{node.lineno}: makes a Console")
    assert not others
