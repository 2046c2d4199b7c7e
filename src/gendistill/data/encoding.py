"""Documents to token ids, in batches, several threads at once."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from gendistill.data.chat import encode_conversations
from gendistill.data.packing import Piece, make_piece
from gendistill.data.sources import Document
from gendistill.errors import UserError

BATCH_CHARACTERS = 1_000_000  # tokenised in one call: the tokenizer's objects take 100 bytes a token while it lasts
AHEAD = 2  # batches: a core that is through with its own takes from the next, while a book keeps another busy


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


class Encoder:
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
        # The tokenizer's own fast call: it makes no offsets, which nobody reads here.
        encode = partial(backend.encode_batch_fast, add_special_tokens=False)
        encoded = []
        for encodings in _ahead(encode, batches(texts, len)):
            for encoding in encodings:
                encoded.append(self._checked(np.array([*encoding.ids, self.end], dtype=np.int32)))
        return encoded

    def conversations(self, documents: list[Document], met: SourceCounts, malformed: list[UserError]) -> list[Piece]:
        """Each conversation as one piece, cut at sequence_length; one without a token to learn is skipped.

        Why one cannot be encoded is added to `malformed`.
        """
        pieces = []
        encoded = []
        for batch in batches(documents, characters_of):
            encoded += encode_conversations(self.tokenizer, [document.content for document in batch])
        for document, conversation in zip(documents, encoded, strict=True):
            if isinstance(conversation, UserError):
                malformed.append(UserError(f"{document.where}: {conversation}"))
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


def _ahead(function: Callable[[list], list], items: Iterator[list]) -> Iterator[list]:
    """function(item) of each in order, those of the next AHEAD items computed in threads meanwhile."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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


def characters_of(document: Document) -> int:
    if isinstance(document.content, str):
        return len(document.content)
    return sum(len(message["content"]) for message in document.content)
