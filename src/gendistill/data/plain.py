"""Plain texts to token ids: control tokens in them are text, and a text of any length takes little memory.

The tokenizer's objects take 100 bytes a token while they last, so a long text is encoded in parts. A cut is taken only
where the ids around it are shown to be those of the whole: most tokenizers begin a word at white space whatever stands
before it, those that put a blank of their own before a text (SentencePiece) need the cut one character further on.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from gendistill.data.controls import Controls, GuardedTokens
from gendistill.errors import UserError

BATCH_CHARACTERS = 1_000_000  # tokenised in one call
PART_CHARACTERS = 100_000  # of a long text; several to a batch, which then takes all cores
AHEAD = 2  # batches: a core that is through with its own takes from the next, while others are busy
AROUND = 200  # characters on either side of a cut, over which it is compared with the whole
TRIES = 50  # cuts tried in one place, before the part is made longer
# Single white space between words or at the end of a line, since runs of it are joined in many ways; and the
# punctuation of languages that write without.
CUT = re.compile(r"(?<=[^\W\d_])[ 。！？；，、](?=[^\W\d_])|(?<=\S)\n(?=\S)")
# (end of what is before, start of what is behind, both counted from that character; ids to drop behind, which the
# tokenizer put there for the beginning of a text)
WAYS = [(0, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1)]


class _Part(NamedTuple):
    """A part of a text.

    Attributes:
        drop: how many ids at its start are not the text's.
        first, last: whether the text begins, or ends, with it.
    """

    text: str
    drop: int
    first: bool
    last: bool


class PlainTexts:
    """A tokenizer's ids of plain texts.

    Attributes:
        start: ids that the tokenizer itself begins a text with (Llama's <|begin_of_text|>); empty for many.
    """

    def __init__(self, tokenizer):
        self.start = start_of_text(tokenizer)
        self.controls = Controls(tokenizer)
        self.tokenizer, self.shared = tokenizer, tokenizer.backend_tokenizer
        self.shared.no_truncation()  # what an earlier call left behind
        self.shared.no_padding()

    @cached_property
    def literal(self) -> Tokenizer:
        """The tokenizer that reads control tokens as ordinary text, made when the first text holds one.

        A copy, since that is a state of the whole tokenizer, which others use meanwhile: a window of a stream may still
        be encoded in its thread when a prompt is rendered. Making it takes up to a second.
        """
        copy = Tokenizer.from_str(self.shared.to_str())
        copy.encode_special_tokens = True  # by the library's name: encoded like other text
        return copy

    def encode(self, texts: Iterable[str], end: Iterable[int] = ()) -> list[np.ndarray | UserError]:
        """Start, ids and `end` of each text, int32 [length]; or why it cannot be encoded."""
        start, end, nothing = (np.array(ids, np.int32) for ids in (self.start, list(end), []))
        parts = (part for text in texts for part in self._parts(text))
        encoded: list[np.ndarray | UserError] = []
        held: list[np.ndarray] = []  # of the text whose last part is still to come
        problem = None
        # Closed here whatever happens: the garbage collector may wait for its threads in a place where they cannot end.
        with closing(_ahead(self._encode_batch, batches(parts, lambda part: len(part.text)))) as encoded_parts:
            for part, ids in encoded_parts:
                if isinstance(ids, UserError):
                    problem, ids = ids, []
                # From the list as it is: a longer one, with start and end, would be made first, at the same cost again.
                text = np.fromiter(ids, np.int32, len(ids))
                held.append(np.concatenate([start if part.first else nothing, text, end if part.last else nothing]))
                if part.last:
                    encoded.append(problem or (held[0] if len(held) == 1 else np.concatenate(held)))
                    held, problem = [], None
        return encoded

    def _encode_batch(self, parts: list[_Part]) -> list[tuple[_Part, list[int] | UserError]]:
        quoting = {number for number, part in enumerate(parts) if self.controls.are_in(part.text)}
        plain = [part.text for number, part in enumerate(parts) if number not in quoting]
        # The tokenizer's own fast call: it makes no offsets, which nobody reads here.
        encodings = iter(self.shared.encode_batch_fast(plain, add_special_tokens=False))
        ids = [
            self._quoting_ids(part) if number in quoting else next(encodings).ids[part.drop :]
            for number, part in enumerate(parts)
        ]
        return list(zip(parts, ids, strict=True))

    def _quoting_ids(self, part: _Part) -> list[int] | UserError:
        """Of a part that holds control tokens."""
        if any(token in part.text for token in self.leaks):  # none, for most tokenizers
            return self._guarded_ids(part)
        return self.literal.encode(part.text, add_special_tokens=False).ids[part.drop :]

    def _guarded_ids(self, part: _Part) -> list[int] | UserError:
        try:
            text = self.controls.guard(part.text, "the text")
            return GuardedTokens(text, self.literal.encode(text, add_special_tokens=False)).ids[part.drop :]
        except UserError as error:
            return error.with_traceback(None)  # frames would keep the batch alive

    @cached_property
    def leaks(self) -> list[str]:
        """The control tokens that come out of plain text even if the tokenizer is told not to look for any.

        Those that it does not call special, and where the vocabulary of the model itself has them as pieces (Unigram).
        """
        tokens = [*self.controls.special, *self.controls.tags]
        encodings = self.literal.encode_batch_fast(tokens, add_special_tokens=False)
        numbers = self.tokenizer.convert_tokens_to_ids(tokens)
        return [
            token for token, number, encoding in zip(tokens, numbers, encodings, strict=True) if number in encoding.ids
        ]

    def _parts(self, text: str) -> Iterator[_Part]:
        start, drop, wanted = 0, 0, PART_CHARACTERS
        while start + wanted < len(text):
            cut = self._find_cut(text, start, start + wanted)
            if cut is None:  # nowhere near: the part becomes longer, in the end the whole text
                wanted += PART_CHARACTERS
                continue
            end, next_start, next_drop = cut
            yield _Part(text[start:end], drop, first=start == 0, last=False)
            start, drop, wanted = next_start, next_drop, PART_CHARACTERS
        yield _Part(text[start:], drop, first=start == 0, last=True)

    def _find_cut(self, text: str, start: int, wanted: int) -> tuple[int, int, int] | None:
        """(end of this part, start of the next, ids to drop there) near a place in a text; None if none is safe."""
        places = CUT.finditer(text, wanted, min(len(text), wanted + PART_CHARACTERS))
        for place in islice(places, TRIES):
            at = place.start()
            before, behind = max(start, at - AROUND), at + AROUND
            whole = self._window(text[before:behind])
            for end, resume, drop in WAYS:
                left, right = self._window(text[before : at + end]), self._window(text[at + resume : behind])
                if left + right[drop:] == whole:
                    return at + end, at + resume, drop
        return None

    def _window(self, text: str) -> list[int]:
        backend = self.literal if self.controls.are_in(text) else self.shared
        return backend.encode(text, add_special_tokens=False).ids


def start_of_text(tokenizer) -> list[int]:
    """The ids that the tokenizer puts before a text of its own accord."""
    whole, text = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    # What it puts behind a text is not asked for: documents have an end token of their own.
    starts = [number for number in range(len(whole)) if whole[number : number + len(text)] == text]
    return whole[: starts[0]] if starts else []


def _ahead(function: Callable[[list], list], items: Iterator[list]) -> Iterator[Any]:
    """Elements of function(item) of each in order, those of the next AHEAD items computed in threads meanwhile."""
    # Threads are enough: the tokenizer is compiled code, and releases Python's lock while it works.
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:  # no more in memory than are worked on
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def batches(items: Iterable, characters: Callable[[Any], int]) -> Iterator[list]:
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
