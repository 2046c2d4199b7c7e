"""Answers stored as they come in, so that an evaluation that is killed resumes behind its last whole one.

Of many processes each has a file of its own: FILE, FILE.1, ... All read all of them, so that what some number of
processes left is taken up by any other number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gendistill.distributed import WHOLE, Share, barrier, of_all_processes
from gendistill.evaluate.ranking import Ranking
from gendistill.files import checked_line, read_checked_line, write_atomically
from gendistill.inference.generation import Reply


class Partial:
    """The answers to a task's items so far: a line with the hash of all they depend on, then one for each batch.

    Args:
        path: FILE, of the first process.
        share: of this process.

    Attributes:
        rankings, replies: those that are there, by the index of the prompt.
        on_answers: called with the number of answers that have come in.
    """

    def __init__(self, path: Path, digest: str, share: Share = WHOLE):
        self.first, self.digest = path, digest
        self.path = path if share.number == 0 else path.with_name(f"{path.name}.{share.number}")
        self.on_answers: Callable[[int], None] = lambda count: None
        self.rankings: dict[int, Ranking] = {}
        self.replies: dict[int, Reply] = {}

    def __enter__(self) -> "Partial":
        found = {path: self._lines(path) for path in self._files()}
        for lines in found.values():
            self._take(lines[1:])
        barrier()  # no file is written before all have read it
        whole = [checked_line(line) for line in found.get(self.path) or [{"sha256": self.digest}]]
        write_atomically(self.path, "".join(whole))  # without half a line at its end
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def _files(self) -> list[Path]:
        # No task's records end in a number, so that these are no other task's.
        return sorted(self.first.parent.glob(f"{self.first.name}*"))

    def _take(self, lines: list[dict[str, Any]]) -> None:
        stores = {"reply": (self.replies, Reply), "ranking": (self.rankings, Ranking)}
        for line in lines:
            store, answer_type = stores[line["what"]]
            for index, answer in line["answers"].items():
                # JSON has no tuples and no numbers as keys: they come back as lists and texts.
                values = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()}
                store[int(index)] = answer_type(**values)

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        """The whole lines that are there, if they are of the same questions to the same model."""
        # What is half a line, of a process killed while it wrote, or damaged, is answered again.
        lines = path.read_bytes().split(b"\n")
        read = [line for line in map(read_checked_line, lines) if line is not None]
        # Of other questions, or another model: nothing of it is of use.
        return read if read and read[0] == {"sha256": self.digest} else []

    def add(self, finished: dict[int, Ranking | Reply]) -> None:
        if finished:
            what = "reply" if isinstance(next(iter(finished.values())), Reply) else "ranking"
            # One line for all: answered again without some of its items, a batch would round scores otherwise.
            answers = {index: vars(answer) for index, answer in finished.items()}
            self.file.write(checked_line({"what": what, "answers": answers}))
            self.file.flush()  # to the system, so that a killed process leaves whole lines
            (self.replies if what == "reply" else self.rankings).update(finished)
        self.on_answers(len(finished))

    def gather(self) -> None:
        """Takes over the answers of all processes, which all must call it; no answer is missing then."""
        before = len(self.rankings) + len(self.replies)
        # What an earlier attempt left all have read; it comes again from each and is the same.
        for rankings, replies in of_all_processes((self.rankings, self.replies)):
            self.rankings |= rankings
            self.replies |= replies
        self.on_answers(len(self.rankings) + len(self.replies) - before)

    def remove(self) -> None:
        """Deletes the files of all processes, those of an earlier attempt by more processes among them."""
        for path in self._files():
            path.unlink()
