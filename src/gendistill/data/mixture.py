"""The stream from sources to packed sequences: each source gives its share of the tokens; shuffled, tokenised, packed.

The stream is cut into rounds. Between two rounds all of its state is a small JSON value, so that a preparation that was
killed resumes after its last round and gives the same packed sequences.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from gendistill.data.encoding import Encoder, LossOn
from gendistill.data.held_out import EVERYTHING, Part
from gendistill.data.packing import ConversationPacker, Piece, TextPacker, token_count
from gendistill.data.stream import Exhausted, Position, Stream
from gendistill.recipe.data import Source

ROUND_TOKENS = 2**20  # drawn, packed and written before the state is kept again


class Mixture:
    """Packed sequences of a mixture, a round at a time.

    Args:
        sources: each gives tokens in proportion to its weight, to within a document.
        tokenizer: a fast transformers tokenizer; for conversations, one with a chat template.
        rows: how many packed sequences are wanted in all.
        loss_on: "all" or "completion", see `dataset.prepare`.
        part: which records of the sources are read.
        state: `state()` of an earlier Mixture of the same arguments, to resume from there.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer,
        sequence_length: int,
        rows: int,
        loss_on: LossOn,
        seed: int,
        part: Part = EVERYTHING,
        state: dict[str, Any] | None = None,
    ):
        self.sequence_length, self.rows, self.seed = sequence_length, rows, seed
        state = state or {"round": 0, "made": 0, "texts": [], "conversations": [], "streams": []}
        self.round, self.made = state["round"], state["made"]
        # What was drawn and does not fill a packed sequence yet.
        texts = [Piece.from_json(piece) for piece in state["texts"]]
        conversations = [Piece.from_json(piece) for piece in state["conversations"]]
        self.texts = TextPacker(sequence_length, texts)
        self.conversations = ConversationPacker(sequence_length, conversations)

        positions = [Position.from_json(position) for position in state["streams"]] or [Position() for _ in sources]
        encoder = Encoder(tokenizer, sequence_length, loss_on)
        # One thread of each for all: while this one packs, one window is encoded and one is read.
        readers, encoders = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        weights = sum(source.weight for source in sources)
        self.streams = []
        for number, (source, position) in enumerate(zip(sources, positions, strict=True)):
            budget = round(rows * sequence_length * (source.weight / weights)) + 1  # tokens, never 0
            self.streams.append(Stream(source, number, seed, encoder, budget, position, readers, encoders, part))

    def state(self) -> dict[str, Any]:
        """All that the packed sequences to come depend on besides the arguments, as JSON."""
        return {
            "round": self.round,
            "made": self.made,
            "texts": [piece.to_json() for piece in self.texts.waiting],
            "conversations": [piece.to_json() for piece in self.conversations.waiting],
            "streams": [asdict(stream.position) for stream in self.streams],
        }

    def next_round(self) -> list[list[Piece]]:
        """The next packed sequences, each a list of pieces, in random order; at most as many as are still wanted.

        Raises:
            Exhausted: a source has no more.
            UserError: a source cannot be read, or too much of it is malformed or empty.
        """
        # Only as many tokens as are still wanted: what is drawn beyond them would be read and counted for nothing.
        waiting = sum(map(token_count, [*self.texts.waiting, *self.conversations.waiting]))
        wanted = (self.rows - self.made) * self.sequence_length - waiting
        wanted = max(1, min(ROUND_TOKENS, wanted))  # conversations can wait for one that fits
        rows = self._pack(self._draw(wanted))
        # Best-fit packing leaves rows sorted by length of document; the last round is cut somewhere.
        np.random.default_rng([self.seed, self.round]).shuffle(rows)
        rows = rows[: self.rows - self.made]
        self.round, self.made = self.round + 1, self.made + len(rows)
        if self.made == self.rows:
            for stream in self.streams:  # also of those too short for a check at the end of a window
                stream.check_skipped()
                stream.show_skipped()
        return rows

    def all_rows(self) -> list[list[Piece]]:
        """All packed sequences at once; fewer than are wanted, and the last one padded, where a source has no more.

        For a few of them, and with no state to resume from.
        """
        drawn = []
        with suppress(Exhausted):
            for document in self._draw(self.rows * self.sequence_length):
                drawn.append(document)
        rows = self._pack(drawn) + [packer.waiting for packer in (self.texts, self.conversations) if packer.waiting]
        return rows[: self.rows]

    def _draw(self, wanted: int) -> Iterator[np.ndarray | Piece]:
        """Documents of so many tokens, the last one whole."""
        while wanted > 0:
            # Whoever is furthest behind its weight gives next: shares hold at every moment, not only at the end.
            document = min(self.streams, key=lambda stream: stream.share).take()
            yield document
            wanted -= token_count(document)

    def _pack(self, documents: Iterable[np.ndarray | Piece]) -> list[list[Piece]]:
        """The packed sequences that are now full."""
        texts, conversations = [], []
        for document in documents:
            (conversations if isinstance(document, Piece) else texts).append(document)
        return self.texts.add(texts) + self.conversations.add(conversations)
