"""The documents of one source as a stream that can stop and resume anywhere: read in windows, shuffled, encoded."""

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from gendistill.data.conversations import EMPTY_TEXT, Skipped
from gendistill.data.encoding import Encoder
from gendistill.data.held_out import EVERYTHING, Part
from gendistill.data.packing import Piece, token_count
from gendistill.data.sources import Document, read_documents
from gendistill.errors import UserError
from gendistill.recipe.data import Source

# Documents are read, shuffled and tokenised by the window; the second bound keeps a window of books small in memory.
WINDOW_DOCUMENTS = 1000
WINDOW_CHARACTERS = 8_000_000
WINDOW_RECORDS = 10_000  # skipped ones too: a source of nothing else is to be told so, not read to its end
CHARACTERS_PER_TOKEN = 16  # generous, so that a window of a small budget still holds several times what is needed
NO_LOSS_TOKEN = "with no loss token within sequence_length"
SHOWN = 3  # malformed records of a source that are shown one by one
logger = logging.getLogger(__name__)


@dataclass
class SourceCounts:
    """What one source gave (`documents`, `tokens`) and what happened in reading it (the rest).

    Attributes:
        read: records; of a text that is divided, its parts.
        malformed: records that could not be read or encoded.
        skipped: records that give nothing to learn: empty, tool calls, no loss token within sequence_length.
        cut: conversations longer than a packed sequence.
        reasons: the skipped ones by the reason.
        ignored: of what was not skipped, records by what of them is not used though it may be meant: a field that looks
            like part of the prompt, a key of a message.
    """

    documents: int = 0
    tokens: int = 0
    read: int = 0
    malformed: int = 0
    skipped: int = 0
    cut: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        mine, theirs = asdict(self), asdict(other)
        return SourceCounts(**{name: _sum(mine[name], theirs[name]) for name in mine})

    @property
    def why_skipped(self) -> str:
        """The reasons with their numbers, the most frequent first."""
        ordered = sorted(self.reasons.items(), key=lambda item: -item[1])
        return ", ".join(f"{number:,} {reason}" for reason, number in ordered)


def _sum(mine: int | dict[str, int], theirs: int | dict[str, int]) -> int | dict[str, int]:
    if isinstance(mine, int):
        return mine + theirs
    return {name: mine.get(name, 0) + theirs.get(name, 0) for name in sorted(mine.keys() | theirs.keys())}


@dataclass
class Position:
    """Where a stream stands: in which pass, at which record its window begins, how much of the window is used."""

    epoch: int = 1  # pass over the records, from 1
    record: int = 0  # number of the window's first record in the source's stored order
    used: int = 0  # documents of the window
    finished: SourceCounts = field(default_factory=SourceCounts)  # of the windows before this one

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Position":
        return cls(**(state | {"finished": SourceCounts(**state["finished"])}))


class _Records(NamedTuple):
    """Records that were read together and shuffled.

    Attributes:
        documents: those that are to be encoded.
        end: number of the record behind the last.
        malformed: why records of it could not be read.
        reasons, ignored, examples: as in `SourceCounts` and `_Window`.
    """

    documents: list[Document]
    end: int
    malformed: list[UserError]
    reasons: Counter
    ignored: Counter
    examples: dict[str, str]


@dataclass
class _Window:
    """Records that were read together, shuffled and encoded.

    Attributes:
        documents: token ids of texts or pieces of conversations, shuffled.
        end: number of the record behind the last.
        read: counts of reading it; what it gives is counted as it is taken.
        malformed: why records of it could not be read or encoded.
        examples: where the first record stood that was skipped for a reason, or of which a thing is ignored.
    """

    documents: list[np.ndarray | Piece]
    end: int
    read: SourceCounts
    malformed: list[UserError]
    examples: dict[str, str]


class Exhausted(UserError):
    """All passes over a source are used up."""


class Stream:
    """Encoded documents of one source: windows in stored order, each shuffled, and the next one prepared ahead."""

    def __init__(
        self,
        source: Source,
        number: int,
        seed: int,
        encoder: Encoder,
        budget: int,
        position: Position,
        readers: ThreadPoolExecutor,
        encoders: ThreadPoolExecutor,
        part: Part = EVERYTHING,
    ):
        """
        Args:
            number: of the source in the mixture; sources of the same files are shuffled differently.
            budget: tokens that the mixture wants of it, for the size of windows and for error messages.
            position: where to resume.
            readers, encoders: of one thread each, in which a window is read while the one before it is encoded and this
                thread packs the one before that.
            part: which of its records are read; the others are passed over, and count for nothing.
        """
        self.source, self.number, self.seed, self.encoder = source, number, seed, encoder
        self.budget, self.position, self.part = budget, position, part
        self.readers, self.encoders = readers, encoders
        self.characters = min(WINDOW_CHARACTERS, CHARACTERS_PER_TOKEN * budget)
        self.records: Iterator | None = None  # of this pass, open where the last window ended; its thread reads
        self.read_ahead: Future[_Records] | None = None  # for the window behind the last that is encoded
        self.ahead: Future[_Window] | None = None  # the window behind this one
        self.window: _Window | None = None
        self.used_tokens = 0  # of this window

    @property
    def counts(self) -> SourceCounts:
        """Up to the position: all of the windows before, and of this one what was read and what was taken."""
        read = SourceCounts() if self.window is None else self.window.read
        return self.position.finished + read + SourceCounts(self.position.used, self.used_tokens)

    @property
    def share(self) -> float:
        """Tokens given, as multiples of the source's weight; the mixture keeps it equal for all."""
        return (self.position.finished.tokens + self.used_tokens) / self.source.weight

    def take(self) -> np.ndarray | Piece:
        """The next document: token ids of a text, or the piece of a conversation.

        Raises:
            Exhausted: all passes over the source are used up.
            UserError: too many of its records are malformed or empty.
        """
        if self.window is None:
            self._load()
            # After a restart the position may lie inside the window, which was read and shuffled as before.
            self.used_tokens = sum(map(token_count, self.window.documents[: self.position.used]))
        while self.position.used == len(self.window.documents):  # a window may be empty: all of it skipped
            self._move_on()
        document = self.window.documents[self.position.used]
        self.position.used += 1
        self.used_tokens += token_count(document)
        return document

    def check_skipped(self) -> None:
        """Raises UserError if most of what was read so far gave no token to learn, which the recipe can mend."""
        counts = self.counts
        if 2 * sum(counts.reasons.get(reason, 0) for reason in (EMPTY_TEXT, NO_LOSS_TOKEN)) > counts.read:
            raise UserError(
                f"{self.source.label}: {counts.skipped} of {counts.read} documents were skipped: {counts.why_skipped}; "
                "take data that fits, or a longer sequence_length where that is the reason"
            )

    def show_skipped(self) -> None:
        """Says what was left out in all, once the source has given what is wanted of it."""
        counts = self.counts
        if counts.skipped:
            logger.warning(
                "%s: %s of %s records skipped: %s",
                self.source.label,
                f"{counts.skipped:,}",
                f"{counts.read:,}",
                counts.why_skipped,
            )
        for name, number in counts.ignored.items():
            logger.warning(
                "%s: %s not used in %s of %s records", self.source.label, name, f"{number:,}", f"{counts.read:,}"
            )

    def _move_on(self) -> None:
        """To the next window, of the next pass if this one is at its end."""
        self._start(self.position.epoch, self.window.end)
        if self.window.end > self.position.record:  # a window that ends where it begins lies behind the last record
            return
        if self.part.held_out:
            raise Exhausted(f"{self.source.label}: has no more records that are held out")
        self.check_skipped()
        counts, passes = self.counts, self.position.epoch
        if not counts.documents:
            reasons = f": {counts.why_skipped}" if counts.skipped else ""
            raise UserError(f"{self.source.label}: none of its {counts.read} records can be trained on{reasons}")
        if passes == self.source.epochs:
            needed = -(-self.budget * passes // counts.tokens)  # rounded up
            raise Exhausted(
                f"{self.source.label}: is exhausted after {counts.tokens:,} tokens in {passes} pass(es); the mixture "
                f"wants about {self.budget:,} of it. Give it more data or less weight, lower the stage's tokens, or "
                f"allow repetition by epochs: {max(needed, passes + 1)}{self._of_held_out()}"
            )
        if passes == 1:  # told once, not in every pass
            logger.warning("%s: shorter than its share of the tokens, read again", self.source.label)
        self.records = None  # opened anew by the next read
        self._start(passes + 1, 0)

    def _of_held_out(self) -> str:
        share = self.part.share
        return f" ({share:.3g} of its records are held out; held_out: 0 trains on all)" if share else ""

    def _start(self, epoch: int, record: int) -> None:
        self.position = Position(epoch, record, 0, self.counts)
        self.window, self.used_tokens = None, 0
        self._load()

    def _load(self) -> None:
        """Takes the window that begins at the position, and has the one behind it prepared if it will be wanted."""
        epoch, record, finished = self.position.epoch, self.position.record, self.position.finished
        # The window ahead, if there is one, begins at this very position: nothing moves it but the end of this window.
        ahead = self.ahead or self._submit(epoch, record)
        self.ahead, window = None, ahead.result()
        self._check_malformed(window, finished.malformed)
        self._show_first(window, finished)
        if not window.documents and not finished.documents and window.malformed:
            raise window.malformed[0]  # all of them: the template's or the recipe's mistake, not the record's
        self.window = window
        if (finished + window.read).read >= WINDOW_DOCUMENTS:  # before, a few short records would decide it
            self.check_skipped()
        if window.end > record and finished.tokens + sum(map(token_count, window.documents)) < self.budget:
            self.ahead = self._submit(epoch, window.end)

    def _submit(self, epoch: int, record: int) -> Future[_Window]:
        """Has the window that begins at a record made."""
        # Records that were read ahead, if there are any, begin at this very record, for the same reason.
        read = self.read_ahead or self.readers.submit(self._read, epoch, record)
        self.read_ahead = None
        return self.encoders.submit(self._encode, epoch, record, read)

    def _encode(self, epoch: int, record: int, read: Future[_Records]) -> _Window:
        """The window of these records; the next ones are read meanwhile, so that the tokenizer never waits for them."""
        documents, end, malformed, reasons, ignored, examples = read.result()
        if end > record:  # else there are none left
            self.read_ahead = self.readers.submit(self._read, epoch, end)
        encode = self.encoder.conversations if self.source.is_chat else self.encoder.texts
        encoded = encode(documents)
        malformed += encoded.malformed
        if encoded.skipped:
            reasons[NO_LOSS_TOKEN] += encoded.skipped
        counts = SourceCounts(
            read=end - record,
            malformed=len(malformed),
            skipped=reasons.total(),
            cut=encoded.cut,
            reasons=dict(reasons),
            ignored=dict(ignored),
        )
        return _Window(encoded.documents, end, counts, malformed, examples)

    def _read(self, epoch: int, record: int) -> _Records:
        """Reads and shuffles the records from one on."""
        if self.records is None:
            self.records = islice(read_documents(self.source, self.seed), record, None)
        documents, malformed = [], []
        reasons, ignored = Counter(), Counter()
        examples: dict[str, str] = {}
        end, size, taken = record, 0, 0
        for document in self.records:
            end += 1
            belongs = self.part.takes(end - 1)
            taken += belongs
            if not belongs:
                pass
            elif isinstance(document, UserError):
                malformed.append(document)
            elif isinstance(document, Skipped):
                reasons[document.reason] += 1
                examples.setdefault(document.reason, document.where)
            else:
                documents.append(document)
                size += document.characters
                ignored.update(document.ignored)
                for name in document.ignored:
                    examples.setdefault(name, document.where)
            full = len(documents) == WINDOW_DOCUMENTS or end - record == WINDOW_RECORDS or size >= self.characters
            if full or len(malformed) > self.source.skip_malformed:  # more than allowed: an error anyhow
                break
        # Seeded by where the window begins: a stream that resumes here shuffles as it did before.
        np.random.default_rng([self.seed, self.number, epoch, record]).shuffle(documents)
        return _Records(documents, end, malformed, reasons, ignored, examples)

    def _show_first(self, window: _Window, finished: SourceCounts) -> None:
        """Shows one record of each reason to skip it, and of each thing that is ignored."""
        for reason in sorted(window.read.reasons.keys() - finished.reasons.keys()):
            logger.warning("skipped: %s: %s", window.examples.get(reason, self.source.label), reason)
        for name in sorted(window.read.ignored.keys() - finished.ignored.keys()):
            what_to_do = "is not known and passed over"
            if name.startswith("field"):
                what_to_do = (
                    "looks like part of the prompt and is not used; name it by input, or put it into the prompt"
                )
            logger.warning("%s: %s %s", window.examples[name], name, what_to_do)

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
