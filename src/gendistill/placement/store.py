"""What a placement has measured so far, kept in a file so that one that is killed resumes and ends the same.

placement.jsonl: a line with the hash of all that the numbers depend on, then a line for each piece of work. With many
processes the first one reads and writes it, and all go on with its numbers.
"""

import time
from pathlib import Path
from typing import Any

from gendistill.distributed import as_rank_zero_says, is_rank_zero
from gendistill.files import checked_line, read_checked_line, write_atomically


class Store:
    """Pieces of work by name, in the order in which they came.

    Attributes:
        lines: {"key", "value", "seconds", "layer_tokens"} of each piece; layer_tokens are tokens through one layer.
    """

    def __init__(self, path: Path, digest: str, began: float):
        """Reads what is there; `began` is the time (`perf_counter`) from which the first piece of work counts."""
        self.path, self.began = path, began
        lines = as_rank_zero_says(lambda: self._read(digest))
        self.lines: dict[str, dict[str, Any]] = {line["key"]: line for line in lines}
        if is_rank_zero():
            # Anew, without half a line at its end.
            whole = [{"sha256": digest}, *lines]
            write_atomically(path, "".join(map(checked_line, whole)))

    def _read(self, digest: str) -> list[dict[str, Any]]:
        """The whole lines that are there, if they are of the same work."""
        # Half a line, of a process that was killed while it wrote, or a damaged one is measured again.
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        read = [line for line in map(read_checked_line, lines) if line is not None]
        return read[1:] if read and read[0] == {"sha256": digest} else []

    def __contains__(self, key: str) -> bool:
        return key in self.lines

    def __getitem__(self, key: str) -> Any:
        return self.lines[key]["value"]

    def add(self, key: str, value: Any, layer_tokens: int) -> None:
        """Keeps a piece of work, which took the time since the one before it."""
        now = time.perf_counter()
        line = {"key": key, "value": value, "seconds": now - self.began, "layer_tokens": layer_tokens}
        self.began = now
        # What is chosen next depends on it: a last bit that differs would send the processes different ways.
        self.lines[key] = as_rank_zero_says(lambda: line)
        if is_rank_zero():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(checked_line(line))

    def total(self, what: str) -> float:
        """Of "seconds" or "layer_tokens", over all pieces and all attempts."""
        return sum(line[what] for line in self.lines.values())
