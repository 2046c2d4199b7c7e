"""The documents of one source as a stream that can stop and resume anywhere: read in windows, shuffled, encoded."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from gendistill.data.encoding import Encoder, SourceCounts, characters_of
from gendistill.data.packing import Piece
from gendistill.data.sources import read_documents
from gendistill.errors import UserError
from gendistill.recipe.data import Source

# Documents are read, shuffled and tokenised by the window; the second bound keeps a window of long documents in memory.
WINDOW_DOCUMENTS = 1000
WINDOW_CHARACTERS = 8_000_000
CHARACTERS_PER_TOKEN = 16  # generous, so that a window of a small budget still holds several times what is needed
SHOWN = 3  # malformed records of a source that are shown one by one
logger = logging.getLogger(__name__)


@dataclass
class Position:
    """Where a stream stands: in which pass, at which record its window begins, how much of the window is used."""

    epoch: int = 1
    record: int = 0
    used: int = 0
    finished: SourceCounts = field(default_factory=SourceCounts)  # of the windows before this one

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Position":
        return cls(**(state | {"finished": SourceCounts(**state["finished"])}))


@dataclass
class _Window:
    """Records that were read together, shuffled and encoded.

    Attributes:
        end: number of the record behind the last.
        met: in reading it.
        malformed: why records of it could not be read or encoded.
    """

    documents: list[np.ndarray | Piece]
    end: int
    met: SourceCounts
    malformed: list[UserError]


class Stream:
    """Encoded documents of one source: windows in stored order, each shuffled, and the next one prepared ahead."""

    def __init__(
        self,
        source: Source,
        number: int,
        seed: int,
        encoder: "Encoder",
        budget: int,
        position: Position,
        pool: ThreadPoolExecutor,
    ):
        """
        Args:
            number: of the source in the mixture; sources of the same files are shuffled differently.
            budget: tokens that the mixture wants of it, for the size of windows and for error messages.
            position: where to go on.
            pool: of one thread, in which windows are read and encoded while this one packs.
        """
        self.source, self.number, self.seed, self.encoder = source, number, seed, encoder
        self.budget, self.position, self.pool = budget, position, pool
        self.characters = min(WINDOW_CHARACTERS, CHARACTERS_PER_TOKEN * budget)
        self.records: Iterator | None = None
        self.ahead: Future[_Window] | None = None
        self.window: _Window | None = None
        self.used_tokens = 0

    @property
    def counts(self) -> SourceCounts:
        met = SourceCounts() if self.window is None else self.window.met
        return self.position.finished + met + SourceCounts(self.position.used, self.used_tokens)

    @property
    def share(self) -> float:
        """Tokens given, as multiples of the source's weight; the mixture keeps it equal for all."""
        return (self.position.finished.tokens + self.used_tokens) / self.source.weight

    def take(self) -> np.ndarray | Piece:
        """The next document: token ids of a text, or the piece of a conversation.

        Raises:
            UserError: all passes over the source are used up, or too many of its records are malformed or empty.
        """
        if self.window is None:
            self._load()
            self.used_tokens = sum(map(length, self.window.documents[: self.position.used]))
        while self.position.used == len(self.window.documents):
            self._move_on()
        document = self.window.documents[self.position.used]
        self.position.used += 1
        self.used_tokens += length(document)
        return document

    def check_skipped(self) -> None:
        counts = self.counts
        if 2 * counts.skipped > counts.read:
            raise UserError(
                f"{self.source.label}: {counts.skipped} of {counts.read} documents were skipped: empty, or with no "
                "token to learn within sequence_length; take longer rows, or data that fits"
            )

    def _move_on(self) -> None:
        """To the next window, of the next pass if this one is at its end."""
        self._start(self.position.epoch, self.window.end)
        if self.window.end > self.position.record:
            return
        self.check_skipped()
        counts, passes = self.counts, self.position.epoch
        if not counts.documents:
            raise UserError(f"{self.source.label}: none of its {counts.read} records can be learnt from")
        if passes == self.source.epochs:
            needed = -(-self.budget * passes // counts.tokens)
            raise UserError(
                f"{self.source.label}: runs dry after {counts.tokens:,} tokens in {passes} pass(es); the mixture wants "
                f"about {self.budget:,} of it. Give it more data or less weight, lower the stage's tokens, or allow "
                f"repetition by epochs: {max(needed, passes + 1)}"
            )
        if passes == 1:
            logger.warning("%s: shorter than its share of the tokens, read again", self.source.label)
        self.records = None
        self._start(passes + 1, 0)

    def _start(self, epoch: int, record: int) -> None:
        self.position = Position(epoch, record, 0, self.counts)
        self.window, self.used_tokens = None, 0
        self._load()

    def _load(self) -> None:
        """Takes the window that begins at the position, and has the one behind it prepared if it will be wanted."""
        epoch, record, finished = self.position.epoch, self.position.record, self.position.finished
        ahead = self.ahead or self.pool.submit(self._read, epoch, record)
        self.ahead, window = None, ahead.result()
        self._check_malformed(window, finished.malformed)
        if not window.documents and not finished.documents and window.malformed:
            raise window.malformed[0]  # all of them: the template's or the recipe's mistake, not the record's
        self.window = window
        if (finished + window.met).read >= WINDOW_DOCUMENTS:
            self.check_skipped()
        if window.end > record and finished.tokens + sum(map(length, window.documents)) < self.budget:
            self.ahead = self.pool.submit(self._read, epoch, window.end)

    def _read(self, epoch: int, record: int) -> _Window:
        """Reads, shuffles and encodes the window that begins at a record; in the pool's thread."""
        if self.records is None:
            self.records = islice(read_documents(self.source, self.seed), record, None)
        window = _Window([], record, SourceCounts(), [])
        documents, size = [], 0
        for document in self.records:
            window.end += 1
            if isinstance(document, UserError):
                window.malformed.append(document)
            else:
                documents.append(document)
                size += characters_of(document)
            full = len(documents) == WINDOW_DOCUMENTS or size >= self.characters
            if full or len(window.malformed) > self.source.skip_malformed:
                break
        window.met.read = window.end - record
        np.random.default_rng([self.seed, self.number, epoch, record]).shuffle(documents)
        if self.source.is_chat:
            window.documents = self.encoder.conversations(documents, window.met, window.malformed)
        else:
            window.documents = self.encoder.texts(documents, window.met)
        window.met.malformed = len(window.malformed)
        return window

    def _check_malformed(self, window: _Window, before: int) -> None:
        """Shows the first malformed records of the source, and raises if there are more than it may have."""
        allowed = self.source.skip_malformed
        if before + len(window.malformed) > allowed:
            raise UserError(
                f"{window.malformed[allowed - before]}\n{self.source.label}: {allowed + 1} malformed records so far, "
                f"and skip_malformed allows {allowed}; mend the data or raise it"
            )
        for error in window.malformed[: max(0, SHOWN - before)]:
            logger.warning("skipped: %s", error)


def length(document: np.ndarray | Piece) -> int:
    """Tokens of an encoded document."""
    return len(document.input_ids if isinstance(document, Piece) else document)
