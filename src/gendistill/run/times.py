"""What the parts of a run took: times.jsonl, a line for each part that came to its end, killed attempts left out."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gendistill.distributed import is_rank_zero
from gendistill.errors import UserError
from gendistill.files import read_jsonl, write_atomically

SHORTEST = 0.05  # seconds; what is found done takes less, and is no part


class Times:
    """Takes the times of a run's parts; those of the first process are written.

    Args:
        path: of the file, made with the first part; None: nothing is kept, for the folder is another process's.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._inside = 0.0  # seconds of the parts that have ended inside the one that runs

    @contextmanager
    def of(self, part: str, what: str) -> Iterator[None]:
        """Times the block, less the parts inside it.

        Args:
            part: such as "data" or "training".
            what: the stage, mixture or set it is of.
        """
        began, around = time.perf_counter(), self._inside
        self._inside = 0.0
        try:
            yield
            self._keep(part, what, time.perf_counter() - began - self._inside)
        finally:  # also after an error, which the part around it may survive
            self._inside = around + time.perf_counter() - began

    def _keep(self, part: str, what: str, seconds: float) -> None:
        if self.path is None or seconds < SHORTEST or not is_rank_zero():
            return
        # Anew as a whole, so that no kill leaves half a line.
        before = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        line = json.dumps({"part": part, "of": what, "seconds": round(seconds, 2)})
        write_atomically(self.path, f"{before}{line}\n")

    def told(self) -> str | None:
        """A sentence on all of them, the longest part first; None if there are none, or the file is damaged."""
        seconds: dict[str, float] = defaultdict(float)
        try:
            for line in self.lines():  # of all calls that the run took
                seconds[line["part"]] += line["seconds"]
        except (UserError, LookupError, TypeError):  # no result depends on it
            return None
        if not seconds:
            return None
        longest = sorted(seconds, key=seconds.__getitem__, reverse=True)
        parts = ", ".join(f"{part} {seconds[part]:,.0f}" for part in longest)
        return f"{sum(seconds.values()):,.0f} seconds in all: {parts}"

    def lines(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path) if self.path is not None and self.path.exists() else []
