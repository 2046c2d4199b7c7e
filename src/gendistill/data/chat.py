"""Conversations to token ids and a mask of loss tokens, for any chat template.

The rule: a reply that is trained on must stand behind exactly the ids that generation sees (the generation prompt,
thinking off), and must end with the token that ends the turn. Real templates break this in many ways: they close a turn
with a newline that generation never emits, render past turns differently from the current one, or add thinking blocks
in one mode only. So nothing is assumed about the template: it is rendered for each turn and the ids are compared.

Control tokens come from the template alone. Where a message quotes one ("<|im_end|>"), it is text like any other.
A template that prints the date is told the day of the run (see `dates`).

An assistant's turn of weight 0 is context: it is no loss target, on "all" tokens neither.

`{% generation %}` markers, where a template has them, can only take tokens out of the loss mask.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gendistill.data.controls import CountedTokens, GuardedTokens
from gendistill.data.rendering import Conversation, Reply, Template, excerpt
from gendistill.data.sources import Message
from gendistill.errors import UserError


class Encoded(NamedTuple):
    """A conversation as token ids, and which of them are completions.

    Attributes:
        input_ids: length T.
        loss_mask: length T; True where the token itself belongs to a reply or ends its turn. Not shifted.
    """

    input_ids: list[int]
    loss_mask: list[bool]


def encode_conversation(tokenizer, messages: list[Message], all_tokens: bool = False) -> Encoded:
    """Token ids of a conversation and which of them are completions.

    The sequence is the generation prompt of the last turn, the reply and its end-of-turn token, and ends there. An
    earlier assistant turn is trained on too if it stands in this sequence as generation would have seen it; where a
    template renders past turns differently (Qwen3 drops their thinking block), it serves as context only.

    Args:
        tokenizer: a fast transformers tokenizer with a chat template.
        messages: system, user and assistant turns; the last is the assistant's. An assistant's turn with "weight": 0 is
            context. The sequence ends with the last that is not.
        all_tokens: take everything but turns of weight 0, not the replies alone.

    Raises:
        UserError: no chat template; the template has no end-of-turn token or cannot be matched with what generation
            sees; the mask is all False or all True; a message holds U+FDD0; a reply is empty, or all have weight 0.
    """
    (encoded,) = encode_conversations(tokenizer, [messages], all_tokens)
    if isinstance(encoded, UserError):
        raise encoded
    return encoded


def encode_conversations(
    tokenizer, conversations: Sequence[list[Message]], all_tokens: bool = False
) -> list[Encoded | UserError]:
    """Many conversations at once, in one call of the tokenizer: as `encode_conversation`, several times faster.

    Returns:
        one element a conversation; for one that cannot be encoded the UserError that says why.

    Raises:
        UserError: no chat template.
    """
    template = Template(tokenizer)
    # Text first, for all of them; then few calls of the tokenizer, which uses all cores; then ids and masks.
    rendered = [_attempt(template.render_conversation, messages) for messages in conversations]
    tokenized = _tokenize(template, [sound for sound in rendered if not isinstance(sound, UserError)])
    mask = _encode_all if all_tokens else _encode
    return [sound if isinstance(sound, UserError) else _attempt(mask, sound, tokenized) for sound in rendered]


class Prompt(NamedTuple):
    """What generation sees: the conversation so far and the opening of the assistant's turn, thinking off.

    Attributes:
        messages: the conversation.
        text: as the template renders it, guards included.
        ids: of the text, without guards.
    """

    messages: list[Message]
    text: str
    ids: list[int]


def render_prompts(tokenizer, conversations: Iterable[list[Message]]) -> list[Prompt]:
    """The prompts of many conversations, in one call of the tokenizer.

    Raises:
        UserError: no chat template; the template refuses a conversation; a message holds U+FDD0.
    """
    template = Template(tokenizer)
    rendered = [(messages, template.render_prompt(messages)) for messages in conversations]
    ids = template.ids([text for _, text in rendered])
    return [Prompt(messages, text, ids[text]) for messages, text in rendered]


def render_prompt(tokenizer, messages: list[Message]) -> list[int]:
    """The ids of one conversation's prompt, as `render_prompts`."""
    return render_prompts(tokenizer, [messages])[0].ids


def ends_of_turns(tokenizer) -> set[int]:
    """Ids of the tokens that end an assistant's turn under this chat template: the last of every run of loss tokens.

    Raises:
        UserError: as `encode_conversation`.
    """
    # A template may end the only turn and one in the middle of a conversation with different tokens.
    exchange = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]
    return {encode_conversation(tokenizer, exchange * turns).input_ids[-1] for turns in (1, 2)}


def _attempt(step: Callable, *given):
    """The step's result, or in its place the UserError it ended in, so that one element cannot spoil a batch."""
    try:
        return step(*given)
    except UserError as error:
        return error.with_traceback(None)  # frames would keep the whole batch alive


class _Tokenized(NamedTuple):
    """What the tokenizer made of conversations' texts: with offsets (`tokenizers.Encoding`), or ids and places."""

    encodings: dict
    ids: dict[str, list[int]]
    counted: dict[str, CountedTokens]

    def tokens_of(self, text: str) -> GuardedTokens | CountedTokens:
        return GuardedTokens(text, self.encodings[text]) if text in self.encodings else self.counted[text]

    def ids_of(self, text: str) -> list[int]:
        return self.ids[text] if text in self.ids else GuardedTokens(text, self.encodings[text]).ids


def _tokenize(template: Template, conversations: Sequence[Conversation]) -> _Tokenized:
    exact = [each for each in conversations if each.needs_offsets()]
    others = [each for each in conversations if not each.needs_offsets()]
    ids = template.ids([text for each in others for text in each.texts()])
    counted = {each.text: CountedTokens(ids[each.text], each.controls, template.controls) for each in others}
    wanted = [text for each in exact for text in each.texts()]
    # The tokenizer takes some control tokens for text, or the other way round: then characters must tell.
    wanted += [text for text, tokens in counted.items() if not tokens.is_sound]
    return _Tokenized(template.tokenize(wanted), ids, counted)


def _encode(conversation: Conversation, tokenized: _Tokenized) -> Encoded:
    """Ids and mask of a rendered conversation whose texts have been tokenised."""
    tokens = tokenized.tokens_of(conversation.text)
    marked = None if conversation.marked is None else tokens.within(conversation.marked)
    loss_mask = [False] * len(tokens.ids)
    for reply in conversation.replies:
        start, end = _span(reply, conversation.text, tokens, tokenized)
        targets = [True] * (end - start) if marked is None else marked[start:end]
        # Markers may leave out the end-of-turn token, but a model that is never trained on it never stops.
        targets[-1] = any(targets)
        loss_mask[start:end] = targets
    # All of it: then the prompt would count as the assistant's, and a student would be trained to ask.
    if not any(loss_mask) or all(loss_mask):
        extent = "every token" if any(loss_mask) else "no token"
        raise UserError(
            f"the chat template marks {extent} of the conversation as the assistant's, so there is nothing sound to "
            "train on; check its {% generation %} markers and its generation prompt"
        )
    return Encoded(tokens.ids, loss_mask)


def _encode_all(conversation: Conversation, tokenized: _Tokenized) -> Encoded:
    """Ids, and a mask of all tokens but those of turns of weight 0."""
    ids = _encode(conversation, tokenized).input_ids  # with the proof that generation could give the replies
    if not conversation.unweighted:
        return Encoded(ids, [True] * len(ids))
    tokens = tokenized.tokens_of(conversation.text)
    return Encoded(ids, [not held for held in tokens.within(conversation.unweighted)])


def _span(reply: Reply, text: str, tokens: GuardedTokens | CountedTokens, tokenized: _Tokenized) -> tuple[int, int]:
    """Positions of a reply and its end-of-turn token, proven by comparing ids."""
    positions = []
    for leading in reply:
        # Ids of the text that leads to the boundary, by itself, as generation has them before the reply.
        ids = tokenized.ids_of(text[leading])
        start = tokens.at(leading.start)
        positions.append(start + len(ids))
        if tokens.ids[start : positions[-1]] != ids:
            raise UserError(
                "the tokenizer cuts the prompt otherwise once the reply follows (joining characters across the "
                "boundary), so generation could never give this reply; take leading blanks and line breaks off it. "
                f"It reads {excerpt(text[reply.prompt.stop : reply.whole.stop])}"
            )
    return tuple(positions)
