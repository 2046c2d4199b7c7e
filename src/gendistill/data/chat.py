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

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from os.path import commonprefix
from typing import NamedTuple

from gendistill import templates
from gendistill.data.controls import Controls, GuardedTokens, without_guards
from gendistill.data.dates import clock_of
from gendistill.data.sources import Message
from gendistill.errors import UserError

# Stands in for a reply to see what a template puts around it. No template or data set should contain it.
PROBE = "\u2042probe\u2042"
# Templates with these say themselves which characters the assistant wrote.
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
    # Text first, for all of them; then one call of the tokenizer, which uses all cores; then ids and masks.
    rendered = [_attempt(template.render_conversation, messages) for messages in conversations]
    texts = [text for sound in rendered if not isinstance(sound, UserError) for text in sound.texts()]
    encodings = template.tokenize(texts)
    mask = _encode_all if all_tokens else _encode
    return [sound if isinstance(sound, UserError) else _attempt(mask, sound, encodings) for sound in rendered]


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
    encodings = template.tokenize([text for _, text in rendered])
    return [Prompt(messages, text, GuardedTokens(text, encodings[text]).ids) for messages, text in rendered]


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


class _Turn(NamedTuple):
    """One assistant turn as text: what generation is given, and the same with the reply and its end-of-turn token."""

    prompt: str
    whole: str


class _Reply(NamedTuple):
    """A reply's two boundaries in the text, each as the slice that runs to it from the last control token on.

    A tokenizer encodes the text between two control tokens for itself, so a slice alone says which ids lead up to the
    boundary, and nothing longer need be tokenised again.
    """

    prompt: slice
    whole: slice


class _Conversation(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: from the first character to the last end-of-turn token, guards included.
        replies: those to be trained on, in order.
        marked: (start, end) in characters of what the template's own markers cover; None without markers.
        unweighted: (start, end) in characters of the turns of weight 0, with the tokens that end them.
    """

    text: str
    replies: list[_Reply]
    marked: list[tuple[int, int]] | None
    unweighted: list[tuple[int, int]]

    def texts(self) -> list[str]:
        """What is to be tokenised for it."""
        return [self.text, *(self.text[leading] for reply in self.replies for leading in reply)]


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

    def render_conversation(self, messages: list[Message]) -> _Conversation:
        learnt = _learnt_turns(messages)
        weightless = [position for position in range(learnt[-1]) if _is_weightless(messages[position])]
        messages = self.quote(messages[: learnt[-1] + 1])  # behind the last reply nothing is learnt
        last = self._render_turn(messages)
        # Each earlier turn as if the conversation had ended there, as generation saw it.
        earlier = [self._render_turn(messages[: position + 1]) for position in learnt[:-1]]
        # Where the template renders a past turn otherwise than generation saw it, that turn is context.
        turns = [turn for turn in earlier if last.whole.startswith(turn.whole)] + [last]
        controls = [match.start() for match in self.controls.pattern.finditer(last.whole)]
        replies = [_Reply(*(_slice_to(len(text), controls) for text in turn)) for turn in turns]
        marked = self._marked(messages, last.whole) if MARKER.search(self.source) else None
        unweighted = [self._extent(messages, position, last.whole) for position in weightless]
        return _Conversation(last.whole, replies, marked, unweighted)

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

    def _render_turn(self, messages: list[Message]) -> _Turn:
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
                return _Turn(prompt, prompt + reply["content"] + self._ending(closing))
        # A thinking block that is taken out of the reply, for instance, moves what follows away from the prompt.
        if not (full.startswith(prompt) and full.endswith(closing)):
            raise UserError(
                "the chat template rewrites this reply (a thinking block in it?), so that it no longer follows the "
                f"prompt that generation sees; store the plain reply. It reads {_excerpt(reply['content'])}"
            )
        return _Turn(prompt, full.removesuffix(closing) + self._ending(closing))

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


def _encode(conversation: _Conversation, encodings: dict) -> Encoded:
    """Ids and mask of a rendered conversation whose texts have been tokenised."""
    tokens = GuardedTokens(conversation.text, encodings[conversation.text])
    marked = None if conversation.marked is None else tokens.within(conversation.marked)
    loss_mask = [False] * len(tokens.ids)
    for reply in conversation.replies:
        start, end = _span(reply, conversation.text, tokens, encodings)
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


def _encode_all(conversation: _Conversation, encodings: dict) -> Encoded:
    """Ids, and a mask of all tokens but those of turns of weight 0."""
    ids = _encode(conversation, encodings).input_ids  # with the proof that generation could give the replies
    if not conversation.unweighted:
        return Encoded(ids, [True] * len(ids))
    tokens = GuardedTokens(conversation.text, encodings[conversation.text])
    return Encoded(ids, [not held for held in tokens.within(conversation.unweighted)])


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


def _span(reply: _Reply, text: str, tokens: GuardedTokens, encodings: dict) -> tuple[int, int]:
    """Positions of a reply and its end-of-turn token, proven by comparing ids."""
    positions = []
    for leading in reply:
        # Ids of the text that leads to the boundary, by itself, as generation has them before the reply.
        ids = GuardedTokens(text[leading], encodings[text[leading]]).ids
        start = tokens.at(leading.start)
        positions.append(start + len(ids))
        if tokens.ids[start : positions[-1]] != ids:
            raise UserError(
                "the tokenizer cuts the prompt otherwise once the reply follows (joining characters across the "
                "boundary), so generation could never give this reply; take leading blanks and line breaks off it. "
                f"It reads {_excerpt(text[reply.prompt.stop : reply.whole.stop])}"
            )
    return tuple(positions)


def _slice_to(boundary: int, controls: list[int]) -> slice:
    """The slice of a text that ends at `boundary` and begins with the last control token before it, if there is one."""
    before = bisect_left(controls, boundary)
    return slice(controls[before - 1] if before else 0, boundary)


def _excerpt(quoted: str) -> str:
    return repr(without_guards(quoted)[:60])
