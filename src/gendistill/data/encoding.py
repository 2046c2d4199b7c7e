"""Documents to token ids, in batches, several threads at once."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gendistill.data.chat import encode_conversations
from gendistill.data.packing import Piece, make_piece
from gendistill.data.sources import Document
from gendistill.errors import UserError

LossOn = Literal["all", "completion"]  # every token that can be predicted, or those of replies

BATCH_CHARACTERS = 1_000_000  # tokenised in one call: the tokenizer's objects take 100 bytes a token while it lasts
AHEAD = 2  # batches: a core that is through with its own takes from the next, while a book keeps another busy


class EncodedDocuments(NamedTuple):
    """What became of a list of documents.

    Attributes:
        documents: token ids of a text, int32 [length], or the piece of a conversation.
        skipped: how many are empty, or have no loss token within sequence_length.
        cut: how many conversations were longer than a packed sequence.
        malformed: why others could not be encoded.
    """

    documents: list[np.ndarray | Piece]
    skipped: int
    cut: int
    malformed: list[UserError]


class Encoder:
    """Documents to token ids, checked against the vocabulary."""

    def __init__(self, tokenizer, sequence_length: int, loss_on: LossOn):
        if loss_on not in get_args(LossOn):  # another word would silently train on every token
            raise ValueError(f"unknown loss_on '{loss_on}'; known: {', '.join(get_args(LossOn))}")
        self.tokenizer, self.sequence_length, self.loss_on = tokenizer, sequence_length, loss_on
        self.vocabulary = len(tokenizer)
        self.end = end_of_text(tokenizer)

    def texts(self, documents: list[Document]) -> EncodedDocuments:
        """Token ids and one end token of each plain text; empty texts are skipped."""
        if self.loss_on == "completion" and documents:
            raise UserError(
                f"{documents[0].where}: plain text has no completions; loss_on completion needs conversations"
            )
        held = [document for document in documents if document.content]
        texts = [document.content for document in held]
        if self.end is None and texts:
            raise UserError("the tokenizer has no end-of-text token to put between documents; set its eos_token")
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # what an earlier call left behind
        backend.no_padding()
        # The tokenizer's own fast call: it makes no offsets, which nobody reads here.
        encode = partial(backend.encode_batch_fast, add_special_tokens=False)
        encoded = []
        ends = (document.ends for document in held)
        for encodings in _ahead(encode, batches(texts, len)):
            for encoding in encodings:
                end = [self.end] if next(ends) else []  # none where the text goes on in another document
                ids = np.array([*encoding.ids, *end], dtype=np.int32)  # [length + 1]
                encoded.append(self._checked(ids))
        return EncodedDocuments(encoded, skipped=len(documents) - len(texts), cut=0, malformed=[])

    def conversations(self, documents: list[Document]) -> EncodedDocuments:
        """Each conversation as one piece, cut at sequence_length; one without a loss token is skipped."""
        conversations = []
        for batch in batches(documents, lambda document: document.characters):
            conversations += encode_conversations(self.tokenizer, [document.content for document in batch])
        pieces, skipped, cut, malformed = [], 0, 0, []
        for document, conversation in zip(documents, conversations, strict=True):
            if isinstance(conversation, UserError):
                malformed.append(UserError(f"{document.where}: {conversation}"))
                continue
            piece = self._piece(conversation.input_ids, conversation.loss_mask)
            if not piece.loss_mask.any():
                skipped += 1
                continue
            cut += len(conversation.input_ids) > self.sequence_length
            pieces.append(piece)
        return EncodedDocuments(pieces, skipped, cut, malformed)

    def _piece(self, input_ids: list[int], loss_mask: list[bool]) -> Piece:
        ids = self._checked(np.array(input_ids))  # [length]; checked whole, also what is cut off
        row = slice(self.sequence_length)
        mask = loss_mask[row] if self.loss_on == "completion" else None
        return make_piece(ids[row], mask)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise UserError(
                f"the tokenizer gives ids up to {ids.max()} but says it has {self.vocabulary} tokens; mend it"
            )
        return ids


def end_of_text(tokenizer) -> int | None:
    """The id that is put behind each plain text, or None if the tokenizer has none."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)  # BERT's kind has the second alone
    return next((token for token in ends if token is not None), None)


def _ahead(function: Callable[[list], list], items: Iterator[list]) -> Iterator[list]:
    """function(item) of each in order, those of the next AHEAD items computed in threads meanwhile."""
    # Threads are enough: the tokenizer is compiled code, and releases Python's lock while it works.
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:  # no more in memory than are worked on
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
