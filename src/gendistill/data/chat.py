"""Conversations to token ids and a mask of what is to be learnt, for any chat template.

The rule: a learnt reply must stand behind exactly the ids that generation sees (the generation prompt, thinking off),
and must end with the token that ends the turn. Real templates break this in many ways: they close a turn with a newline
that generation never emits, render past turns differently from the current one, or add thinking blocks in one mode
only. So nothing is assumed about the template: it is rendered for each turn and the ids are compared.

`{% generation %}` markers, where a template has them, can only narrow what is learnt down.
"""

import re
from typing import NamedTuple

from jinja2 import TemplateError

from gendistill.data.sources import Message
from gendistill.errors import UserError

# Stands in for a reply to see what a template puts around it. No template or data set should contain it.
PROBE = "\u2042probe\u2042"
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _Turn(NamedTuple):
    """One assistant turn as text: what generation is given, and the same with the reply and its end-of-turn token."""

    prompt: str
    whole: str


def encode_conversation(tokenizer, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and which of them are completions.

    The sequence is the generation prompt of the last turn, the reply and its end-of-turn token, and ends there. An
    earlier assistant turn is learnt too if it stands in this sequence as generation would have seen it; where a
    template renders past turns differently (Qwen3 drops their thinking block), it serves as context only.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: system, user and assistant turns; the last is the assistant's.

    Returns:
        input_ids: list[int] of length T.
        loss_mask: list[bool] of length T; True where the token itself belongs to a reply or ends its turn. Not shifted.

    Raises:
        UserError: no chat template; the template has no end-of-turn token or cannot be matched with what generation
            sees; the mask is all False or all True.
    """
    turn = _render_turn(tokenizer, messages)
    input_ids = _encode(tokenizer, turn.whole)
    spans = []
    for end in _assistant_ends(messages[:-1]):
        earlier = _render_turn(tokenizer, messages[:end])
        if turn.whole.startswith(earlier.whole):
            spans.append(_span(tokenizer, earlier, input_ids))
    spans.append(_span(tokenizer, turn, input_ids))
    loss_mask = [False] * len(input_ids)
    for start, end in spans:
        loss_mask[start:end] = [True] * (end - start)
    if MARKER.search(tokenizer.get_chat_template()):
        loss_mask = _narrow_to_markers(tokenizer, messages, input_ids, loss_mask, spans)
    if not any(loss_mask) or all(loss_mask):
        extent = "every token" if any(loss_mask) else "no token"
        raise UserError(
            f"the chat template marks {extent} of the conversation as the assistant's, so there is nothing sound to "
            "learn; check its {% generation %} markers and its generation prompt"
        )
    return input_ids, loss_mask


def render_prompt(tokenizer, messages: list[Message]) -> list[int]:
    """The ids that generation sees: the conversation so far and the opening of the assistant's turn, thinking off."""
    return _encode(tokenizer, _render(tokenizer, messages, add_generation_prompt=True))


def _assistant_ends(messages: list[Message]) -> list[int]:
    return [position + 1 for position, message in enumerate(messages) if message["role"] == "assistant"]


def _render_turn(tokenizer, messages: list[Message]) -> _Turn:
    """Renders the last message of `messages`, an assistant's reply, behind the prompt that generation would see."""
    *context, reply = messages
    prompt = _render(tokenizer, context, add_generation_prompt=True)
    probed = _render(tokenizer, [*context, {"role": "assistant", "content": PROBE}])
    head, found, tail = probed.rpartition(PROBE)
    if not found:
        raise UserError("the chat template leaves the assistant's reply out of the conversation")
    ending = tail[: _end_of_turn(tokenizer, tail)]

    if not (head.startswith(prompt) and not head[len(prompt) :].strip()):
        # The template shows a finished turn otherwise than it opens one for generation; generation is what counts.
        if prompt == _render(tokenizer, context):
            raise UserError(
                "the chat template ignores add_generation_prompt, so generation would not know that it is the "
                "assistant's turn; use a template that opens it"
            )
        return _Turn(prompt, prompt + reply["content"] + ending)
    full = _render(tokenizer, messages)
    if not (full.startswith(prompt) and full.endswith(tail)):
        raise UserError(
            "the chat template rewrites this reply (a thinking block in it?), so that it no longer follows the prompt "
            f"that generation sees; store the plain reply. It reads {reply['content'][:60]!r}"
        )
    return _Turn(prompt, full[: len(full) - len(tail)] + ending)


def _end_of_turn(tokenizer, tail: str) -> int:
    """Length of the part of `tail`, the template's text behind a reply, up to its first special token and with it."""
    ends = [
        (tail.find(token.content), tail.find(token.content) + len(token.content))
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and token.content in tail
    ]
    if not ends:
        raise UserError(
            f"the chat template closes the assistant's turn with {tail!r}, which holds no special token, so generation "
            "would never know where to stop; let the template write the tokenizer's end-of-turn token"
        )
    first = min(start for start, _ in ends)
    return max(end for start, end in ends if start == first)


def _span(tokenizer, turn: _Turn, input_ids: list[int]) -> tuple[int, int]:
    """Positions of a turn's completion in the conversation, proven by comparing ids."""
    prompt_ids, whole_ids = _encode(tokenizer, turn.prompt), _encode(tokenizer, turn.whole)
    if whole_ids[: len(prompt_ids)] != prompt_ids or input_ids[: len(whole_ids)] != whole_ids:
        raise UserError(
            "the tokenizer cuts the prompt otherwise once the reply follows (joining characters across the border), so "
            "generation could never give this reply; take leading blanks and line breaks off it. "
            f"It reads {turn.whole[len(turn.prompt) :][:60]!r}"
        )
    return len(prompt_ids), len(whole_ids)


def _narrow_to_markers(tokenizer, messages, input_ids, loss_mask, spans) -> list[bool]:
    """Keeps what the template's own markers cover, and the end-of-turn token of each turn they touch."""
    encoded = _apply_template(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    if encoded["input_ids"][: len(input_ids)] != input_ids:
        raise UserError(
            "the chat template has {% generation %} markers but shows a finished reply otherwise than generation sees "
            "it; let both open the assistant's turn in the same way"
        )
    marked = [bool(mark) for mark in encoded["assistant_masks"][: len(input_ids)]]
    narrowed = [learnt and mark for learnt, mark in zip(loss_mask, marked, strict=True)]
    for start, end in spans:
        narrowed[end - 1] = any(narrowed[start:end])
    return narrowed


def _render(tokenizer, messages: list[Message], add_generation_prompt: bool = False) -> str:
    return _apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def _apply_template(tokenizer, messages: list[Message], **how):
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template, so conversations cannot be rendered; take an instruction-tuned "
            "teacher or set tokenizer.chat_template"
        )
    try:
        return tokenizer.apply_chat_template(messages, enable_thinking=False, **how)
    except TemplateError as error:
        raise UserError(f"the chat template refuses this conversation: {error}") from None


def _encode(tokenizer, text: str) -> list[int]:
    # The template writes its special tokens itself, a beginning-of-text token too.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
