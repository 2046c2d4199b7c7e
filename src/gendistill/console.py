"""What commands print by: on a terminal bars, in a file plain lines; every line whole, in any encoding, and steering no
terminal.
"""

import codecs
import io
import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich import console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.segment import Segment
from rich.text import Text

from gendistill.visible import visible

SECONDS_BETWEEN_LINES = 60  # of progress that goes to a file
# What of the tables and texts here ASCII does not have; anything else becomes a question mark.
ASCII = {"–": "-", "—": "-", "−": "-", "─": "-", "▁": "_", "…": "...", "±": "+-", "×": "x", "→": "->", "·": "_"}
ASCII |= {"⟨": "<", "⟩": ">", "⟪": "<<", "⟫": ">>", "⟦": "[", "⟧": "]", "►": ">", "✓": "+", "✗": "-", "✂": "--"}
ASCII |= {"↵": "\\n", "⇥": "\\t"}
# Libraries that draw bars of their own, and the variables that keep them from it.
OTHERS_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


class Console(console.Console):
    """rich's console for texts from anywhere: no markup, no names of emoji, no highlighting, and `visible` alone.

    Styles are given as styles (`rich.text.Text`), so that no text can ask for one. A text is never broken into lines: a
    terminal folds a long one by itself, and in a file a path that was broken is found by no search.
    """

    def __init__(self, **options: Any):
        """Options are rich's."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **how: Any) -> None:
        if all(isinstance(each, str) for each in objects):
            how = {"soft_wrap": True} | how
        super().print(*objects, **how)

    def render_str(self, text: str, **options) -> Text:
        """As rich's, of what is printed as a string, before rich takes some control characters out."""
        return super().render_str(visible(text), **options)

    def render(self, renderable, options=None) -> Iterable[Segment]:
        """As rich's, which whatever is printed comes through, each cell of a table by itself."""
        for segment in super().render(renderable, options):
            # rich's own movements of the cursor, of progress bars, are marked as such.
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class Progress:
    """How far a long piece of work is: on a terminal a bar, elsewhere a line at once, every minute, and at the end.

    Args:
        title: of the work: "teacher, facts".
        total, done: pieces of it in all, and those that an earlier attempt has done.
        unit: what a piece is: "answers".
    """

    def __init__(self, title: str, total: int, unit: str, console: Console, *, done: int = 0):
        self.title, self.total, self.unit, self.console = title, total, unit, console
        self.before = self.done = done
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal,
        )
        self.bar = self.bars.add_task(title, total=total, completed=done, note="")
        self.printed: float | None = None  # when the last line was

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bars.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """So many pieces more are done; `note` says something of the last: "loss 0.1234"."""
        self.done += count
        self.bars.update(self.bar, completed=self.done, note=note)
        now = time.monotonic()
        is_due = self.printed is None or self.done == self.total or now - self.printed >= SECONDS_BETWEEN_LINES
        if self.console.is_terminal or not is_due:
            return
        self.printed = now
        left = (self.total - self.done) * (now - self.began) / max(1, self.done - self.before)
        parts = [f"{self.title}: {self.done:,} of {self.total:,} {self.unit}", *([note] if note else [])]
        self.console.print(", ".join([*parts, f"{timedelta(seconds=round(left))} left"]))


def prepare_streams() -> None:
    """Makes stdout and stderr take any character, and keeps other libraries from drawing bars into a file."""
    codecs.register_error("gendistill.ascii", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else a caller has put something else there
            stream.reconfigure(errors="gendistill.ascii")
    if not sys.stderr.isatty():
        for name in OTHERS_BARS:
            os.environ.setdefault(name, "1")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(ASCII.get(each, "?") for each in error.object[error.start : error.end]), error.end
