"""Where a reply ends: at a token that ends the turn, or at a stop string."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.errors import UserError
from gendistill.templates import render

# Stands in for a reply to see what a template puts behind it. No template should contain it.
_PROBE = "\u2042probe\u2042"
# Tokens looked at behind the longest stop string: the first of them may be half a character.
_MARGIN = 8


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = ()) -> list[int]:
    """Ids that end a reply.

    They are the tokenizer's end of sequence, those of the model's generation config, the tokens with which the chat
    template closes an assistant's turn (a base model's template may close turns with another token than its end of
    sequence), and stop strings that are one added token.

    Raises:
        UserError: there is none.
    """
    configured = model.generation_config.eos_token_id  # one id, a list of them, or None
    ends = set(configured if isinstance(configured, list | tuple) else [configured]) | {tokenizer.eos_token_id}
    ends |= _closing_ids(tokenizer)
    added = tokenizer.get_added_vocab()
    ends |= {added[text] for text in stop_strings if text in added}
    ends.discard(None)
    if not ends:
        raise UserError("neither the tokenizer nor the generation config names an eos token, so no reply could end")
    return sorted(ends)


def _closing_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the first special token that the chat template puts behind each reply; none without a template."""
    if not tokenizer.chat_template:
        return set()
    # A template may end the only turn and one in the middle of a conversation with different tokens.
    exchange = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = render(tokenizer, exchange * 2)
    except UserError:
        return set()  # no such conversation fits it: then it says nothing of how it closes one
    special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = set()
    for closing in text.split(_PROBE)[1:]:
        found = [(place, -len(token), id) for token, id in special.items() if (place := closing.find(token)) >= 0]
        # Of two that begin at one place the tokenizer takes the longer.
        ids.update(id for _, _, id in sorted(found)[:1])
    return ids


class StopStrings:
    """Stop strings of a generation: a reply is cut at the first of them.

    What is cut off depends on the reply's tokens alone: they are taken up to the first at which the text holds one of
    the strings, and the text up to where that begins. A few tokens more or less generated change nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]):
        self.tokenizer = tokenizer
        self.strings = tuple(strings)
        # A token is a byte at least, so that so many tokens hold the longest string.
        self.tail = max((len(text.encode()) for text in strings), default=0) + _MARGIN

    def __bool__(self) -> bool:
        return bool(self.strings)

    def is_reached(self, ids: Sequence[int], new: int) -> bool:
        """Whether a reply holds a stop string, if it held none `new` tokens ago."""
        # The end first, which is cheap; it may be decoded otherwise than within the whole, which decides.
        return self._holds(ids[-(self.tail + new) :]) and self._holds(ids)

    def cut(self, ids: Sequence[int]) -> tuple[list[int], str] | None:
        """The tokens before the first stop string and the text before it; None if there is none."""
        if not self.strings or not self._holds(ids):
            return None
        said = ids[: _least(len(ids), lambda count: self._holds(ids[:count]))]
        text = self._text(said)
        text = text[: min(place for stop in self.strings if (place := text.find(stop)) >= 0)]
        # A token in which the string begins is no longer the reply's.
        count = _least(len(said), lambda count: len(self._text(said[:count])) > len(text))
        return list(said[: count - 1]), text

    def _holds(self, ids: Sequence[int]) -> bool:
        text = self._text(ids)
        return any(stop in text for stop in self.strings)

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _least(most: int, holds: Callable[[int], bool]) -> int:
    """The least count from 1 to `most` of which something holds, if it holds of all counts behind it too."""
    below, count = 0, most
    while count - below > 1:
        middle = (below + count) // 2
        below, count = (below, middle) if holds(middle) else (middle, count)
    return count
