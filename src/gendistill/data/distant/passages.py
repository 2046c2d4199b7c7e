"""A source's texts as sentences with their tokens, one after another, from any place on and over and over again."""

import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gendistill.data.conversations import Skipped
from gendistill.data.sources import Document, read_documents
from gendistill.errors import UserError
from gendistill.recipe.data import Source

# A sentence ends behind these, or with its paragraph; what is none (a title, a table) counts as one.
SENTENCE = re.compile(
    r"""\s*\S.*?(?:
        [.!?][\"')\]\u201d\u2019]*(?=\s)  # closing marks belong to it
        | [\u3002\uff01\uff1f][\u201d\u300d]?  # Chinese and Japanese have no blank behind them
        | (?=\n\s*\n)
        | \Z
    )""",
    re.DOTALL | re.VERBOSE,
)
# Behind these no sentence has ended.
ABBREVIATION = re.compile(r"(?<!\w)(?:[A-Z]|Mr|Mrs|Ms|Dr|St|No|vs|etc|e\.g|i\.e)\.$")
LONGEST = 1000  # characters between two places where something may be planted, if there is a blank
BETWEEN_DOCUMENTS = "\n\n"
AT_ONCE = 64  # documents that are tokenised together, which uses all cores
AT_ONCE_CHARACTERS = 2_000_000


class Place(NamedTuple):
    """Where a text is read on: everything before it has been taken."""

    epoch: int = 1
    document: int = 0
    sentence: int = 0


class Sentence(NamedTuple):
    """A sentence with the white space before it, its tokens, and the place behind it."""

    text: str
    tokens: int
    behind: Place


class Passages:
    """The sentences of a source from a place on, over as many passes as it may give.

    Attributes:
        place: where the next sentence is read.
        tokens: of all that was taken by this object.
    """

    def __init__(self, source: Source, tokenizer: Any, seed: int, place: Place):
        self.source, self.tokenizer, self.seed, self.place = source, tokenizer, seed, place
        self.tokens = 0
        self._sentences = self._read(place)

    def take(self, tokens: int) -> list[Sentence]:
        """Sentences of so many tokens together, or a little more; fewer where the last pass ends.

        Raises:
            UserError: the source cannot be read, or too much of it is malformed.
        """
        taken: list[Sentence] = []
        while tokens > 0 and (sentence := next(self._sentences, None)) is not None:
            taken.append(sentence)
            tokens -= sentence.tokens
            self.tokens += sentence.tokens
            self.place = sentence.behind
        return taken

    def _read(self, place: Place) -> Iterator[Sentence]:
        for epoch in range(place.epoch, self.source.epochs + 1):
            # Only the first pass may begin in the middle.
            first = place if epoch == place.epoch else Place(epoch)
            for number, sentences in self._documents(first.document):
                for index, (text, tokens) in enumerate(sentences):
                    if number > first.document or index >= first.sentence:
                        yield Sentence(text, tokens, Place(epoch, number, index + 1))

    def _documents(self, first: int) -> Iterator[tuple[int, list[tuple[str, int]]]]:
        """The number of each document from `first` on, and its sentences with their tokens."""
        held: deque[tuple[int, Document]] = deque()
        malformed = 0
        for number, document in enumerate(read_documents(self.source, self.seed)):
            if isinstance(document, UserError):
                malformed += 1  # as in a stream of a mixture
                if malformed > self.source.skip_malformed:
                    raise document
            elif not isinstance(document, Skipped) and number >= first:
                held.append((number, document))
            if len(held) == AT_ONCE or sum(document.characters for _, document in held) > AT_ONCE_CHARACTERS:
                yield from self._measured(held)
        yield from self._measured(held)

    def _measured(self, held: deque[tuple[int, Document]]) -> Iterator[tuple[int, list[tuple[str, int]]]]:
        """What is held, which is let go."""
        if not held:
            return
        documents = [held.popleft() for _ in range(len(held))]
        texts = [
            document.content if not document.begins else BETWEEN_DOCUMENTS + document.content.strip()
            for _, document in documents
        ]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        # Tokens of whole documents: those of single sentences would not add up, under some tokenizers.
        for (number, _), text, encoding in zip(documents, texts, encoded.encodings, strict=True):
            cuts = np.array([0, *sentence_ends(text)])  # [sentences + 1] in characters
            starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)  # [tokens]
            counts = np.diff(np.searchsorted(starts, cuts))  # [sentences] tokens that begin in each
            pieces = [text[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
            yield number, list(zip(pieces, counts.tolist(), strict=True))


def sentence_ends(text: str) -> list[int]:
    """Where the sentences of a text end, in characters; white space stands before a sentence.

    A sentence of more than LONGEST characters is divided before a blank.
    """
    end = len(text.rstrip())
    ends = [match.end() for match in SENTENCE.finditer(text) if not ABBREVIATION.search(match[0])]
    divided, start = [], 0
    # Behind an abbreviation at its very end the text ends all the same.
    for each in [*ends, end] if end and (not ends or ends[-1] < end) else ends:
        while each - start > LONGEST and (blank := text.rfind(" ", start + 1, start + LONGEST)) > 0:
            divided.append(blank)
            start = blank
        divided.append(each)
        start = each
    return divided
