"""A chat template, and conversations as text that it has rendered.

Nothing is assumed about a template (see data/chat.py): it is rendered for each turn that is learnt, and what it puts
around a reply is seen by a reply that no text has.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain
from os.path import commonprefix
from typing import NamedTuple

from gendistill import templates
from gendistill.data.controls import GUARD, Controls, GuardedTokens, without_guards
from gendistill.data.dates import clock_of
from gendistill.data.sources import Message
from gendistill.errors import UserError

# Stands in for a reply to see what a template puts around it. No template or data set should contain it.
PROBE = "\u2042probe\u2042"
# Templates with these say themselves which characters the assistant wrote.
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Turn(NamedTuple):
    """One assistant turn as text: what generation is given, and the same with the reply and its end-of-turn token."""

    prompt: str
    whole: str


class Reply(NamedTuple):
    """A reply's two boundaries in the text, each as the slice that runs to it from the last control token on.

    A tokenizer encodes the text between two control tokens for itself, so a slice alone says which ids lead up to the
    boundary, and nothing longer need be tokenised again.
    """

    prompt: slice
    whole: slice


class Conversation(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: from the first character to the last end-of-turn token, guards included.
        controls: the characters of it at which control tokens begin.
        replies: those to be trained on, in order.
        marked: (start, end) in characters of what the template's own markers cover; None without markers.
        unweighted: (start, end) in characters of the turns of weight 0, with the tokens that end them.
    """

    text: str
    controls: list[int]
    replies: list[Reply]
    marked: list[tuple[int, int]] | None
    unweighted: list[tuple[int, int]]

    def texts(self) -> list[str]:
        """What is to be tokenised for it."""
        return [self.text, *(self.text[leading] for reply in self.replies for leading in reply)]

    def needs_offsets(self) -> bool:
        """Whether characters other than those of control tokens must be found among the ids."""
        return GUARD in self.text or self.marked is not None or bool(self.unweighted)


class Template:
    """A tokenizer's chat template, with what depends on it alone found out once."""

    def __init__(self, tokenizer):
        if not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template, so conversations cannot be rendered; take an instruction-tuned "
                "teacher or set tokenizer.chat_template"
            )
        self.tokenizer = tokenizer
        self.source = tokenizer.get_chat_template()  # one of several, where a tokenizer has them by name
        self.controls = Controls(tokenizer)
        self.closings: set[str] = set()  # what the template was seen to put behind a reply

    def quote(self, messages: list[Message]) -> list[Message]:
        """The messages as the template is to see them: role and content, control tokens in it made ordinary text."""
        return [
            {
                "role": message["role"],
                "content": self.controls.guard(message["content"], "a message", tags=message["role"] != "assistant"),
            }
            for message in messages
        ]

    def tokenize(self, texts: Sequence[str]) -> dict:
        """Rendered texts, each once, to what the tokenizer made of them (`tokenizers.Encoding`)."""
        distinct = list(dict.fromkeys(texts))  # prompts repeat: the same system turn leads to many a boundary
        if not distinct:
            return {}
        # The template writes its special tokens itself, a beginning-of-text token too.
        batch = self.tokenizer(distinct, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return dict(zip(distinct, batch.encodings, strict=True))

    def ids(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Rendered texts, each once, to their ids without guards.

        Raises:
            UserError: the tokenizer joins a guard with what stands around it.
        """
        distinct = dict.fromkeys(texts)
        encodings = self.tokenize([text for text in distinct if GUARD in text])
        found = {text: GuardedTokens(text, encoding).ids for text, encoding in encodings.items()}
        # Prompts share most of their pieces: the same few-shot examples stand in all of them.
        pieces = {text: self.controls.pieces(text) for text in distinct if text not in found}
        wanted = list(dict.fromkeys(chain.from_iterable(pieces.values())))
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # all three may be what another call has left behind
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        # Without offsets, which are a fifth of the work.
        encodings = backend.encode_batch_fast(wanted, add_special_tokens=False)
        # `ids` of an encoding once each: it is a copy.
        ids = {piece: encoding.ids for piece, encoding in zip(wanted, encodings, strict=True)}
        return found | {text: [*chain.from_iterable(ids[piece] for piece in own)] for text, own in pieces.items()}

    def render_conversation(self, messages: list[Message]) -> Conversation:
        learnt = _learnt_turns(messages)
        weightless = [position for position in range(learnt[-1]) if _is_weightless(messages[position])]
        messages = self.quote(messages[: learnt[-1] + 1])  # behind the last reply nothing is learnt
        last = self._render_turn(messages)
        # Each earlier turn as if the conversation had ended there, as generation saw it.
        earlier = [self._render_turn(messages[: position + 1]) for position in learnt[:-1]]
        # Where the template renders a past turn otherwise than generation saw it, that turn is context.
        turns = [turn for turn in earlier if last.whole.startswith(turn.whole)] + [last]
        controls = self.controls.starts(last.whole)
        replies = [Reply(*(_slice_to(len(text), controls) for text in turn)) for turn in turns]
        marked = self._marked(messages, last.whole) if MARKER.search(self.source) else None
        unweighted = [self._extent(messages, position, last.whole) for position in weightless]
        return Conversation(last.whole, controls, replies, marked, unweighted)

    def _extent(self, messages: list[Message], position: int, text: str) -> tuple[int, int]:
        """Where in `text` a turn stands, with the token that ends it, as (start, end) in characters."""
        other = [*messages]
        other[position] = messages[position] | {"content": PROBE}
        probed = self._render_turn(other).whole
        # What differs when something else is said in this turn is this turn.
        start = len(commonprefix([text, probed]))
        same = len(commonprefix([text[start:][::-1], probed[start:][::-1]]))
        ending = self.controls.pattern.search(text, len(text) - same)
        return start, ending.end() if ending else len(text) - same

    def _render_turn(self, messages: list[Message]) -> Turn:
        """Renders the last message of `messages`, an assistant's reply, behind the prompt that generation would see."""
        *context, reply = messages
        prompt = self.render(context, add_generation_prompt=True)
        full = self.render(messages)
        closing = self._known_closing(prompt, reply["content"], full)  # saves a rendering for nearly every turn
        if closing is None:
            head, closing = self._probe(context)
            # Blanks that the template puts between the prompt and the reply count as the reply's.
            if not (head.startswith(prompt) and not head[len(prompt) :].strip()):
                # The template shows a finished turn otherwise than it opens one for generation, which is what counts.
                self._check_opens_turn(prompt, context)
                return Turn(prompt, prompt + reply["content"] + self._ending(closing))
        # A thinking block that is taken out of the reply, for instance, moves what follows away from the prompt.
        if not (full.startswith(prompt) and full.endswith(closing)):
            raise UserError(
                "the chat template rewrites this reply (a thinking block in it?), so that it no longer follows the "
                f"prompt that generation sees; store the plain reply. It reads {excerpt(reply['content'])}"
            )
        return Turn(prompt, full.removesuffix(closing) + self._ending(closing))

    def _known_closing(self, prompt: str, reply: str, full: str) -> str | None:
        """A closing seen before, if `full` is the prompt, the reply (trimmed or not) and that closing."""
        for closing in self.closings:
            if full in (prompt + reply + closing, prompt + reply.strip() + closing):
                return closing
        return None

    def _probe(self, context: list[Message]) -> tuple[str, str]:
        """What the template puts before a reply to `context`, and behind it."""
        head, found, closing = self.render([*context, {"role": "assistant", "content": PROBE}]).rpartition(PROBE)
        if not found:
            raise UserError("the chat template leaves the assistant's reply out of the conversation")
        self._ending(closing)  # raises where there is none
        self.closings.add(closing)
        return head, closing

    def _ending(self, closing: str) -> str:
        """The template's text behind a reply up to its first control token and with it: the end of the turn."""
        token = self.controls.pattern.search(closing)  # what stands before it ("\n" in some templates) is generated too
        if not token:
            raise UserError(
                f"the chat template closes the assistant's turn with {closing!r}, which holds no special token, so "
                "generation would never know where to stop; let the template write the tokenizer's end-of-turn token"
            )
        return closing[: token.end()]

    def _check_opens_turn(self, prompt: str, context: list[Message]) -> None:
        if prompt == self.render(context):  # the same with and without the opening
            raise UserError(
                "the chat template ignores add_generation_prompt, so generation would not know that it is the "
                "assistant's turn; use a template that opens it"
            )

    def _marked(self, messages: list[Message], text: str) -> list[tuple[int, int]]:
        """Where in `text` the template's own markers stand, as (start, end) in characters."""
        full, marked = templates.render_marked(self.tokenizer, messages, clock_of(self.tokenizer))
        # `marked` counts characters of `full`, so `text` must be its beginning.
        if not full.startswith(text):
            raise UserError(
                "the chat template has {% generation %} markers but shows a finished reply otherwise than generation "
                "sees it; let both open the assistant's turn in the same way"
            )
        return marked

    def render_prompt(self, messages: list[Message]) -> str:
        """The text that generation sees before a reply, guards included."""
        return self.render(self.quote(messages), add_generation_prompt=True)

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        clock = clock_of(self.tokenizer)
        return templates.render(self.tokenizer, messages, clock, add_generation_prompt=add_generation_prompt)


def _is_weightless(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) == 0


def _learnt_turns(messages: list[Message]) -> list[int]:
    """Positions of the assistant's turns that are to be learnt, at least one.

    Raises:
        UserError: there is none, or one of them is empty.
    """
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant" and not _is_weightless(message)]
    if not turns:
        raise UserError("every assistant's turn has weight 0, so there is nothing to learn; leave the conversation out")
    if not all(messages[turn]["content"].strip() for turn in turns):
        raise UserError("a reply is empty: learnt, it would teach to say nothing; leave the conversation out")
    return turns


def _slice_to(boundary: int, controls: list[int]) -> slice:
    """The slice of a text that ends at `boundary` and begins with the last control token before it, if there is one."""
    before = bisect_left(controls, boundary)
    return slice(controls[before - 1] if before else 0, boundary)


def excerpt(quoted: str) -> str:
    """The beginning of a text, as an error shows it."""
    return repr(without_guards(quoted)[:60])
