"""Answers stored as they come in, so that an evaluation that is killed resumes behind its last whole one."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gendistill.evaluate.ranking import Ranking
from gendistill.files import checked_line, read_checked_line, write_atomically
from gendistill.inference.generation import Reply


class Partial:
    """The answers to a task's items so far: a line with the hash of all they depend on, then one for each batch.

    Attributes:
        rankings, replies: those that an earlier attempt left, by the index of the prompt.
        on_answers: called with the number of answers that have come in.
    """

    def __init__(self, path: Path, digest: str):
        self.path, self.digest = path, digest
        self.on_answers: Callable[[int], None] = lambda count: None
        self.rankings: dict[int, Ranking] = {}
        self.replies: dict[int, Reply] = {}

    def __enter__(self) -> "Partial":
        lines = self._lines()
        stores = {"reply": (self.replies, Reply), "ranking": (self.rankings, Ranking)}
        for line in lines[1:]:
            store, answer_type = stores[line["what"]]
            for index, answer in line["answers"].items():
                # JSON has no tuples and no numbers as keys: they come back as lists and texts.
                values = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()}
                store[int(index)] = answer_type(**values)
        whole = [checked_line(line) for line in lines or [{"sha256": self.digest}]]
        write_atomically(self.path, "".join(whole))  # without half a line at its end
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines that are there, if they are of the same questions to the same model."""
        # What is half a line, of a process killed while it wrote, or damaged, is answered again.
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        read = [line for line in map(read_checked_line, lines) if line is not None]
        # Of other questions, or another model: nothing of it is of use.
        return read if read and read[0] == {"sha256": self.digest} else []

    def add(self, finished: dict[int, Ranking | Reply]) -> None:
        if finished:
            what = "reply" if isinstance(next(iter(finished.values())), Reply) else "ranking"
            # One line for all: answered again without some of its items, a batch would round scores otherwise.
            answers = {index: asdict(answer) for index, answer in finished.items()}
            self.file.write(checked_line({"what": what, "answers": answers}))
            self.file.flush()  # to the system, so that a killed process leaves whole lines
        self.on_answers(len(finished))
