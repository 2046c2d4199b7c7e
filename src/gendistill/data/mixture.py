"""The stream from sources to packed rows: each source gives its share of the tokens; shuffle, tokenise, pack, count.

The stream is cut into rounds. Between two rounds all of its state is a small JSON value, so that a preparation that was
killed resumes after its last round and gives the same rows.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from gendistill.data.encoding import Encoder
from gendistill.data.packing import ConversationPacker, Piece, TextPacker
from gendistill.data.stream import Position, Stream, length
from gendistill.recipe.data import Source

ROUND_TOKENS = 2**20  # drawn, packed and written before the state is kept again


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
        encoder = Encoder(tokenizer, sequence_length, loss_on)
        state = state or {"round": 0, "made": 0, "texts": [], "conversations": [], "streams": []}
        positions = [Position.from_json(position) for position in state["streams"]] or [Position() for _ in sources]
        weights = sum(source.weight for source in sources)
        shares = [source.weight / weights for source in sources]
        pool = ThreadPoolExecutor(1)
        self.streams = [
            Stream(source, number, seed, encoder, round(rows * sequence_length * share) + 1, position, pool)
            for number, (source, share, position) in enumerate(zip(sources, shares, positions, strict=True))
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
