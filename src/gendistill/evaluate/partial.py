"""Answers stored as they come in, so that an evaluation that is killed resumes behind its last whole one."""

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gendistill.evaluate.ranking import Ranking
from gendistill.files import write_atomically
from gendistill.inference.generation import Reply


class Partial:
    """The answers to a task's items so far: a line with the hash of all they depend on, then one for each.

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
            answer = line["answer"]
            # JSON has no tuples: what was written as one comes back as a list.
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()}
            store[line["index"]] = answer_type(**values)
        whole = [_written(line) for line in lines or [{"sha256": self.digest}]]
        write_atomically(self.path, "".join(whole))  # without half a line at its end
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines that are there, if they are of the same questions to the same model."""
        # What is half a line, of a process killed while it wrote, or damaged, is answered again.
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        read = [line for line in map(_read, lines) if line is not None]
        # Of other questions, or another model: nothing of it is of use.
        return read if read and read[0] == {"sha256": self.digest} else []

    def add(self, finished: dict[int, Ranking | Reply]) -> None:
        for index, answer in finished.items():
            what = "reply" if isinstance(answer, Reply) else "ranking"
            line = {"what": what, "index": index, "answer": asdict(answer)}
            # One line each: what a killed process leaves is whole lines and at most one half.
            self.file.write(_written(line))
        self.file.flush()  # to the system, so that a killed process leaves whole lines
        self.on_answers(len(finished))


def _written(line: dict[str, Any]) -> str:
    """A line with its checksum in front."""
    text = json.dumps(line, ensure_ascii=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _read(line: bytes) -> dict[str, Any] | None:
    """What was written, or None if the line is not whole."""
    checksum, _, text = line.partition(b" ")
    return json.loads(text) if text and checksum == b"%08x" % zlib.crc32(text) else None
