"""Documents to token ids and loss masks, checked against the vocabulary."""

from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from gendistill.data.chat import encode_conversations
from gendistill.data.packing import Piece, make_piece
from gendistill.data.plain import PlainTexts, batches
from gendistill.data.sources import Document
from gendistill.errors import UserError

LossOn = Literal["all", "completion"]  # every token that can be predicted, or those of replies


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

    @cached_property
    def plain(self) -> PlainTexts:
        return PlainTexts(self.tokenizer)  # looks at every control token: only where there is plain text

    def texts(self, documents: list[Document]) -> EncodedDocuments:
        """Token ids of each plain text, between the tokenizer's start token, if it has one, and one end token.

        Control tokens written in a text are text. Empty texts are skipped.
        """
        if self.loss_on == "completion" and documents:
            raise UserError(
                f"{documents[0].where}: plain text has no completions; loss_on completion needs conversations"
            )
        written = [document for document in documents if document.content]
        if self.end is None and written:
            raise UserError("the tokenizer has no end-of-text token to put between documents; set its eos_token")
        encoded, malformed = [], []
        found = self.plain.encode((document.content for document in written), [self.end])
        for document, ids in zip(written, found, strict=True):
            if isinstance(ids, UserError):
                malformed.append(UserError(f"{document.where}: {ids}"))
                continue
            encoded.append(self._checked(ids))
        return EncodedDocuments(encoded, len(documents) - len(written), 0, malformed)

    def conversations(self, documents: list[Document]) -> EncodedDocuments:
        """Each conversation as one piece, cut at sequence_length; one without a loss token is skipped."""
        conversations = []
        for batch in batches(documents, lambda document: document.characters):
            messages = [document.content for document in batch]
            conversations += encode_conversations(self.tokenizer, messages, all_tokens=self.loss_on == "all")
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
        return make_piece(ids[row], loss_mask[row])

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
