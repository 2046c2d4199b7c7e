"""The stream from sources to packed rows: interleave, shuffle, tokenise, pack, count."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import Progress

from gendistill.data.chat import encode_conversation
from gendistill.data.packing import ConversationPacker, Piece, TextPacker, make_piece
from gendistill.data.sources import Document, read_documents
from gendistill.errors import UserError

# Documents are read, shuffled and packed by the window; the second bound keeps a window of long documents in memory.
WINDOW_DOCUMENTS = 1000
WINDOW_CHARACTERS = 8_000_000
CHARACTERS_PER_TOKEN = 16  # generous, so that a window of a small budget still holds several times what is needed

logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """What went into the rows (`documents` to `filler_tokens`) and what was met on the way (the rest)."""

    documents: int = 0
    pieces: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    filler_tokens: int = 0
    read: int = 0
    skipped: int = 0
    cut: int = 0
    epochs: int = 0

    def add_row(self, pieces: list[Piece], sequence_length: int) -> None:
        tokens = sum(len(piece.input_ids) for piece in pieces)
        self.documents += sum(piece.opens_document for piece in pieces)
        self.pieces += len(pieces)
        self.tokens += tokens
        self.loss_tokens += sum(int(piece.loss_mask.sum()) for piece in pieces)
        self.filler_tokens += sequence_length - tokens

    def check_skipped(self) -> None:
        if 2 * self.skipped > self.read:
            raise UserError(
                f"{self.skipped} of {self.read} documents were skipped: empty, or with no token to learn within "
                "sequence_length; take longer rows, or data that fits"
            )


def packed_rows(
    sources, tokenizer, sequence_length: int, rows: int, loss_on: str, seed: int, counts: Counts
) -> Iterator[list[Piece]]:
    """Yields exactly `rows` rows, each a list of pieces, and keeps `counts` of what was read up to date."""
    rng = np.random.default_rng([seed, 1])
    encoder = _Encoder(tokenizer, sequence_length, loss_on, counts)
    texts, conversations = TextPacker(sequence_length), ConversationPacker(sequence_length)
    characters = min(WINDOW_CHARACTERS, CHARACTERS_PER_TOKEN * rows * sequence_length)
    made = 0
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("Preparing data", total=rows)
        for window in _windows(sources, seed, characters, counts):
            rng.shuffle(window)
            full = texts.add(encoder.encode_texts(window)) + conversations.add(encoder.encode_conversations(window))
            # Best-fit packing leaves rows sorted by length of document; the last window is cut somewhere.
            rng.shuffle(full)
            full = full[: rows - made]
            made += len(full)
            yield from full
            progress.update(bar, completed=made)
            if counts.read >= WINDOW_DOCUMENTS:
                counts.check_skipped()
            if made == rows:
                counts.check_skipped()
                return


def interleave(sources, seed: int) -> Iterator[Document]:
    """One document of each source in turn; a source that runs out leaves its turns to the others."""
    readers = [read_documents(source, seed) for source in sources]
    while readers:
        for reader in list(readers):
            document = next(reader, None)
            if document is None:
                readers.remove(reader)
            else:
                yield document


def _windows(sources, seed: int, characters: int, counts: Counts) -> Iterator[list[Document]]:
    """Windows of the interleaved sources, without end: after the last record comes the first again."""
    while True:
        counts.epochs += 1
        if counts.epochs == 2:
            logger.warning("The data is shorter than the token budget: reading it again (%d documents)", counts.read)
        window, size = [], 0
        for document in interleave(sources, seed):
            window.append(document)
            counts.read += 1
            size += _characters(document)
            if len(window) == WINDOW_DOCUMENTS or size >= characters:
                yield window
                window, size = [], 0
        if window:
            yield window
        counts.check_skipped()


def _characters(document: Document) -> int:
    if isinstance(document.content, str):
        return len(document.content)
    return sum(len(message["content"]) for message in document.content)


class _Encoder:
    """Documents of a window to token ids, checked against the vocabulary."""

    def __init__(self, tokenizer, sequence_length: int, loss_on: str, counts: Counts):
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.loss_on = loss_on
        self.counts = counts
        self.vocabulary = len(tokenizer)

    def encode_texts(self, window: list[Document]) -> list[np.ndarray]:
        """Token ids and one end token of each plain text; empty texts are skipped."""
        documents = [document for document in window if isinstance(document.content, str)]
        if not documents:
            return []
        if self.loss_on == "completion":
            raise UserError(
                f"{documents[0].where}: plain text has no completions; loss_on completion needs conversations"
            )
        texts = [document.content for document in documents if document.content]
        self.counts.skipped += len(documents) - len(texts)
        if not texts:
            return []
        end = self._end_token()
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        return [self._checked(np.array([*ids, end], dtype=np.int32)) for ids in encoded]

    def encode_conversations(self, window: list[Document]) -> list[Piece]:
        """Each conversation as one piece, cut at sequence_length; one without a token to learn is skipped."""
        pieces = []
        for document in window:
            if isinstance(document.content, str):
                continue
            try:
                ids, mask = encode_conversation(self.tokenizer, document.content)
            except UserError as error:
                raise UserError(f"{document.where}: {error}") from None
            cut = slice(self.sequence_length)
            piece = make_piece(self._checked(np.array(ids))[cut], mask[cut] if self.loss_on == "completion" else None)
            if not piece.loss_mask.any():
                self.counts.skipped += 1
                continue
            self.counts.cut += len(ids) > self.sequence_length
            pieces.append(piece)
        return pieces

    def _end_token(self) -> int:
        for token in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            if token is not None:
                return token
        raise UserError("the tokenizer has no end-of-text token to put between documents; set its eos_token")

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise UserError(
                f"the tokenizer gives ids up to {ids.max()} but says it has {self.vocabulary} tokens; mend it"
            )
        return ids
