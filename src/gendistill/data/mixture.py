"""The stream from sources to packed rows: each source gives its share of the tokens; shuffle, tokenise, pack, count.

The stream is cut into rounds. Between two rounds all of its state is a small JSON value, so that a preparation that was
killed goes on after its last round and gives the same rows.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from gendistill.data.chat import encode_conversations
from gendistill.data.packing import ConversationPacker, Piece, TextPacker, make_piece
from gendistill.data.sources import Document, read_documents
from gendistill.errors import UserError
from gendistill.recipe import Source

# Documents are read, shuffled and tokenised by the window; the second bound keeps a window of long documents in memory.
WINDOW_DOCUMENTS = 1000
WINDOW_CHARACTERS = 8_000_000
CHARACTERS_PER_TOKEN = 16  # generous, so that a window of a small budget still holds several times what is needed
BATCH_CHARACTERS = 1_000_000  # tokenised in one call: the tokenizer's objects take 100 bytes a token while it lasts
ROUND_TOKENS = 2**20  # drawn, packed and written before the state is kept again
SHOWN = 3  # malformed records of a source that are shown one by one

logger = logging.getLogger(__name__)


@dataclass
class SourceCounts:
    """What one source gave (`documents`, `tokens`) and what was met in reading it (the rest).

    Attributes:
        malformed: records that could not be read or encoded.
        skipped: records that are empty, or have no token to learn within sequence_length.
        cut: conversations longer than a row.
    """

    documents: int = 0
    tokens: int = 0
    read: int = 0
    malformed: int = 0
    skipped: int = 0
    cut: int = 0

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        mine, theirs = asdict(self), asdict(other)
        return SourceCounts(**{name: mine[name] + theirs[name] for name in mine})


@dataclass
class _Position:
    """Where a stream stands: in which pass, at which record its window begins, how much of the window is used."""

    epoch: int = 1
    record: int = 0
    used: int = 0
    finished: SourceCounts = field(default_factory=SourceCounts)  # of the windows before this one

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "_Position":
        return cls(**(state | {"finished": SourceCounts(**state["finished"])}))


class _Stream:
    """Encoded documents of one source: windows in stored order, each shuffled."""

    def __init__(self, source: Source, number: int, seed: int, encoder: "_Encoder", budget: int, position: _Position):
        """
        Args:
            number: of the source in the mixture; sources of the same files are shuffled differently.
            budget: tokens that the mixture wants of it, for the size of windows and for error messages.
            position: where to go on.
        """
        self.source, self.number, self.seed, self.encoder = source, number, seed, encoder
        self.budget, self.position = budget, position
        self.characters = min(WINDOW_CHARACTERS, CHARACTERS_PER_TOKEN * budget)
        self.met = SourceCounts()  # in this window, in reading
        self.window: list[np.ndarray | Piece] | None = None
        self.window_end = 0
        self.used_tokens = 0
        self.records: Iterator | None = None
        self.first_malformed: UserError | None = None

    @property
    def counts(self) -> SourceCounts:
        return self.position.finished + self.met + SourceCounts(self.position.used, self.used_tokens)

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
            self.used_tokens = sum(map(length, self.window[: self.position.used]))
        while self.position.used == len(self.window):
            self._next_window()
        document = self.window[self.position.used]
        self.position.used += 1
        self.used_tokens += length(document)
        return document

    def _next_window(self) -> None:
        self.position = _Position(self.position.epoch, self.window_end, 0, self.counts)
        self.met, self.used_tokens = SourceCounts(), 0
        self._load()
        if self.window_end == self.position.record:  # nothing was left of this pass
            self._next_epoch()

    def _next_epoch(self) -> None:
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
        self.position = _Position(passes + 1, 0, 0, counts)
        self.records = None
        self._load()

    def _load(self) -> None:
        """Reads, shuffles and encodes the window that begins at the position's record."""
        if self.records is None:
            self.records = islice(read_documents(self.source, self.seed), self.position.record, None)
        window, size, end = [], 0, self.position.record
        for document in self.records:
            end += 1
            self.met.read += 1
            if isinstance(document, UserError):
                self._malformed(document)
                continue
            window.append(document)
            size += _characters(document)
            if len(window) == WINDOW_DOCUMENTS or size >= self.characters:
                break
        np.random.default_rng([self.seed, self.number, self.position.epoch, self.position.record]).shuffle(window)
        if self.source.is_chat:
            self.window = self.encoder.conversations(window, self.met, self._malformed)
        else:
            self.window = self.encoder.texts(window, self.met)
        self.window_end = end
        if not self.window and not self.position.finished.documents and self.first_malformed is not None:
            raise self.first_malformed  # all of them: the template's or the recipe's mistake, not the record's
        if (self.position.finished + self.met).read >= WINDOW_DOCUMENTS:
            self.check_skipped()

    def check_skipped(self) -> None:
        counts = self.counts
        if 2 * counts.skipped > counts.read:
            raise UserError(
                f"{self.source.label}: {counts.skipped} of {counts.read} documents were skipped: empty, or with no "
                "token to learn within sequence_length; take longer rows, or data that fits"
            )

    def _malformed(self, error: UserError) -> None:
        """Counts a record that cannot be used and shows the first ones."""
        self.met.malformed += 1
        self.first_malformed = self.first_malformed or error
        malformed = self.position.finished.malformed + self.met.malformed
        if malformed > self.source.skip_malformed:
            raise UserError(
                f"{error}\n{self.source.label}: {malformed} malformed records so far, and skip_malformed allows "
                f"{self.source.skip_malformed}; mend the data or raise it"
            )
        if malformed <= SHOWN:
            logger.warning("skipped: %s", error)


class Mixture:
    """Rows of a mixture, a round at a time.

    Args:
        sources: each gives tokens in proportion to its weight, to within a document.
        tokenizer: a fast transformers tokenizer; for conversations, one with a chat template.
        rows: how many are wanted in all.
        loss_on: "all" or "completion", see `dataset.prepare`.
        state: `state()` of an earlier Mixture of the same arguments, to go on from there.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer,
        sequence_length: int,
        rows: int,
        loss_on: str,
        seed: int,
        state: dict[str, Any] | None = None,
    ):
        self.sequence_length, self.rows, self.seed = sequence_length, rows, seed
        encoder = _Encoder(tokenizer, sequence_length, loss_on)
        state = state or {"round": 0, "made": 0, "texts": [], "conversations": [], "streams": []}
        positions = [_Position.from_json(position) for position in state["streams"]] or [_Position() for _ in sources]
        weights = sum(source.weight for source in sources)
        self.streams = [
            _Stream(source, number, seed, encoder, int(rows * sequence_length * source.weight / weights) + 1, position)
            for number, (source, position) in enumerate(zip(sources, positions, strict=True))
        ]
        self.texts = TextPacker(sequence_length, [Piece.from_json(piece) for piece in state["texts"]])
        self.conversations = ConversationPacker(
            sequence_length, [Piece.from_json(piece) for piece in state["conversations"]]
        )
        self.round, self.made = state["round"], state["made"]

    def state(self) -> dict[str, Any]:
        """All that the rows to come depend on besides the arguments, as JSON."""
        return {
            "round": self.round,
            "made": self.made,
            "texts": [piece.to_json() for piece in self.texts.waiting],
            "conversations": [piece.to_json() for piece in self.conversations.waiting],
            "streams": [asdict(stream.position) for stream in self.streams],
        }

    def next_round(self) -> list[list[Piece]]:
        """The next rows, each a list of pieces, in random order; at most as many as are still wanted.

        Raises:
            UserError: a source cannot be read or runs dry, or too much of it is malformed or empty.
        """
        waiting = sum(map(length, [*self.texts.waiting, *self.conversations.waiting]))
        wanted = (self.rows - self.made) * self.sequence_length - waiting
        wanted = max(1, min(ROUND_TOKENS, wanted))  # conversations can wait for one that fits
        texts, conversations = [], []
        while wanted > 0:
            document = min(self.streams, key=lambda stream: stream.share).take()
            (conversations if isinstance(document, Piece) else texts).append(document)
            wanted -= length(document)
        rows = self.texts.add(texts) + self.conversations.add(conversations)
        # Best-fit packing leaves rows sorted by length of document; the last round is cut somewhere.
        np.random.default_rng([self.seed, self.round]).shuffle(rows)
        rows = rows[: self.rows - self.made]
        self.round, self.made = self.round + 1, self.made + len(rows)
        if self.made == self.rows:
            for stream in self.streams:
                stream.check_skipped()
        return rows


def length(document: np.ndarray | Piece) -> int:
    """Tokens of an encoded document."""
    return len(document.input_ids if isinstance(document, Piece) else document)


def _characters(document: Document) -> int:
    if isinstance(document.content, str):
        return len(document.content)
    return sum(len(message["content"]) for message in document.content)


class _Encoder:
    """Documents of a window to token ids, checked against the vocabulary."""

    def __init__(self, tokenizer, sequence_length: int, loss_on: str):
        self.tokenizer, self.sequence_length, self.loss_on = tokenizer, sequence_length, loss_on
        self.vocabulary = len(tokenizer)
        self.end = end_of_text(tokenizer)

    def texts(self, documents: list[Document], met: SourceCounts) -> list[np.ndarray]:
        """Token ids and one end token of each plain text, int32; empty texts are skipped."""
        if self.loss_on == "completion" and documents:
            raise UserError(
                f"{documents[0].where}: plain text has no completions; loss_on completion needs conversations"
            )
        texts = [document.content for document in documents if document.content]
        met.skipped += len(documents) - len(texts)
        if self.end is None and texts:
            raise UserError("the tokenizer has no end-of-text token to put between documents; set its eos_token")
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # what an earlier call left behind
        backend.no_padding()
        encoded = []
        for batch in batches(texts, len):
            # The tokenizer's own fast call: it makes no offsets, which nobody reads here.
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                encoded.append(self._checked(np.array([*encoding.ids, self.end], dtype=np.int32)))
        return encoded

    def conversations(
        self, documents: list[Document], met: SourceCounts, malformed: Callable[[UserError], None]
    ) -> list[Piece]:
        """Each conversation as one piece, cut at sequence_length; one without a token to learn is skipped.

        `malformed` is told of each that cannot be encoded.
        """
        pieces = []
        encoded = []
        for batch in batches(documents, _characters):
            encoded += encode_conversations(self.tokenizer, [document.content for document in batch])
        for document, conversation in zip(documents, encoded, strict=True):
            if isinstance(conversation, UserError):
                malformed(UserError(f"{document.where}: {conversation}"))
                continue
            ids, mask = conversation
            cut = slice(self.sequence_length)
            piece = make_piece(self._checked(np.array(ids))[cut], mask[cut] if self.loss_on == "completion" else None)
            if not piece.loss_mask.any():
                met.skipped += 1
                continue
            met.cut += len(ids) > self.sequence_length
            pieces.append(piece)
        return pieces

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise UserError(
                f"the tokenizer gives ids up to {ids.max()} but says it has {self.vocabulary} tokens; mend it"
            )
        return ids


def end_of_text(tokenizer) -> int | None:
    """The id that is put behind each plain text, or None if the tokenizer has none."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return next((token for token in ends if token is not None), None)


def batches(items: list, characters: Callable[[Any], int]) -> Iterator[list]:
    """Items of BATCH_CHARACTERS together, to within one."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += characters(item)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
