"""Packs tokenised documents into sequences of fixed length, the rows of a data set.

Text fills them: a document that reaches a row's end continues in the next row. Conversations are never split: best-fit
decreasing finds each the fullest row that still holds it.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one document that stays together in a packed sequence; attention and state never leave it."""

    input_ids: np.ndarray  # int32 [length]
    loss_mask: np.ndarray  # uint8 [length]; 1 where the token is a loss target, so never at 0: nothing predicts it
    opens_document: bool  # False for the rest of a document that began in an earlier row

    def to_json(self) -> list:
        return [self.input_ids.tolist(), self.loss_mask.tolist(), self.opens_document]

    @classmethod
    def from_json(cls, piece: list) -> "Piece":
        input_ids, loss_mask, opens_document = piece
        return cls(np.array(input_ids, np.int32), np.array(loss_mask, np.uint8), opens_document)


def make_piece(input_ids, loss_mask=None, opens_document: bool = True) -> Piece:
    """A piece from ids [length] and a mask [length] of loss tokens; None takes all that can be predicted."""
    input_ids = np.asarray(input_ids, dtype=np.int32)
    loss_mask = np.ones(len(input_ids), np.uint8) if loss_mask is None else np.array(loss_mask, dtype=np.uint8)
    loss_mask[:1] = 0  # nothing predicts it
    return Piece(input_ids, loss_mask, opens_document)


def token_count(document: np.ndarray | Piece) -> int:
    """Tokens of an encoded document: ids of a text, or a piece."""
    return len(document.input_ids if isinstance(document, Piece) else document)


class TextPacker:
    """Puts documents one after another into rows without padding; `waiting` is the row that is not full yet."""

    def __init__(self, sequence_length: int, waiting: Sequence[Piece] = ()):
        self.sequence_length = sequence_length
        self.waiting = list(waiting)
        self._space = sequence_length - sum(map(token_count, self.waiting))  # tokens the row still takes

    def add(self, documents: list[np.ndarray]) -> list[list[Piece]]:
        """Takes documents, token ids [length] each, and returns the rows that are now full."""
        rows = []
        for ids in documents:
            start = 0
            while start < len(ids):
                part = ids[start : start + self._space]  # the rest of the document, or of the row
                self.waiting.append(make_piece(part, opens_document=start == 0))
                start += len(part)
                self._space -= len(part)
                if self._space == 0:
                    rows.append(self.waiting)
                    self.waiting, self._space = [], self.sequence_length
        return rows


class ConversationPacker:
    """Packs whole conversations, many at a time; `waiting` are those that were left over."""

    def __init__(self, sequence_length: int, waiting: Sequence[Piece] = ()):
        self.sequence_length = sequence_length
        self.waiting = list(waiting)

    def add(self, pieces: list[Piece]) -> list[list[Piece]]:
        """Takes pieces of at most `sequence_length` tokens and returns rows; what the emptiest row held waits."""
        # Most of the padding would be in the emptiest; in the next round its pieces find fuller rows.
        rows = self._best_fit([*self.waiting, *pieces])
        if not rows:
            return []
        emptiest = min(range(len(rows)), key=lambda row: sum(map(token_count, rows[row])))
        self.waiting = rows.pop(emptiest)
        return rows

    def _best_fit(self, pieces: list[Piece]) -> list[list[Piece]]:
        rows: list[list[Piece]] = []
        spaces: list[tuple[int, int]] = []  # (tokens left, row), ascending: one search finds the fullest that fits
        for piece in sorted(pieces, key=token_count, reverse=True):
            length = token_count(piece)
            fullest = bisect_left(spaces, (length, 0))
            if fullest < len(spaces):
                space, row = spaces.pop(fullest)
            else:  # it fits nowhere: a new row
                space, row = self.sequence_length, len(rows)
                rows.append([])
            rows[row].append(piece)
            # Even without space it stays in the list: no piece of one token or more ever finds it.
            insort(spaces, (space - length, row))
        return rows


def lay_out_row(pieces: list[Piece], sequence_length: int, pad_id: int) -> dict[str, np.ndarray]:
    """The arrays of one packed sequence, [sequence_length] each.

    Padding at the end is a document of its own, so that nothing of the row's other documents reaches it.

    Returns:
        input_ids: int32; `pad_id` in the padding.
        position_ids: int32; restarts at 0 at the first token of each piece and of the padding.
        loss_mask: uint8; 1 where the token is a loss target; 0 at each piece's first token and in the padding.
    """
    missing = sequence_length - sum(map(token_count, pieces))
    padding = Piece(np.full(missing, pad_id, np.int32), np.zeros(missing, np.uint8), False)
    pieces = [*pieces, padding]  # a full row's padding has no tokens and changes nothing
    positions = [np.arange(token_count(piece), dtype=np.int32) for piece in pieces]  # a boundary is where they restart
    return {
        "input_ids": np.concatenate([piece.input_ids for piece in pieces]),
        "position_ids": np.concatenate(positions),
        "loss_mask": np.concatenate([piece.loss_mask for piece in pieces]),
    }
