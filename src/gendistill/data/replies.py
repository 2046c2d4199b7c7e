"""Replies that somebody else gives, as the ids that they have behind a prompt."""

from collections.abc import Sequence

from gendistill.data.chat import PROBE, prompt_text
from gendistill.data.controls import Controls, GuardedTokens
from gendistill.data.sources import Message
from gendistill.errors import UserError


def reply_ids(tokenizer, messages: list[Message], replies: Sequence[str]) -> list[list[int]]:
    """The ids of replies as they stand behind the prompt, each: what training learns, and generation can say.

    A tokenizer may encode a text otherwise at its beginning than behind other text: SentencePiece puts a space in front
    there. Where it joins a reply with the prompt's end, so that no ids of the reply follow the prompt's, they are those
    behind a line break, or of the reply alone if it joins that too.

    Args:
        messages: the conversation before the replies.

    Raises:
        UserError: as `render_prompt`.
    """
    prompt, controls = prompt_text(tokenizer, messages), Controls(tokenizer)
    blanks = _blanks_before_reply(tokenizer, messages, prompt)
    texts = [blanks + controls.guard(reply, "a reply", tags=False) for reply in replies]
    # From the last control token on: the tokenizer encodes what stands between two of them for itself.
    start = max((match.start() for match in controls.pattern.finditer(prompt)), default=0)
    before = [prompt[start:], "\n"]
    # Each once, in one call of the tokenizer.
    wanted = list(dict.fromkeys([*(lead + text for lead in before for text in ("", *texts)), *texts]))
    encodings = tokenizer(wanted, add_special_tokens=False, return_attention_mask=False, verbose=False).encodings
    ids = {text: GuardedTokens(text, encoding).ids for text, encoding in zip(wanted, encodings, strict=True)}
    return [_ids_behind(before, text, ids) for text in texts]


def _blanks_before_reply(tokenizer, messages: list[Message], prompt: str) -> str:
    """Blanks that the template puts between the prompt and a reply; they count as the reply's."""
    try:
        text = prompt_text(tokenizer, [*messages, {"role": "assistant", "content": PROBE}])
    except UserError:  # a template for prompts alone
        return ""
    between = text.partition(PROBE)[0][len(prompt) :]
    return between if text.startswith(prompt) and not between.strip() else ""


def _ids_behind(before: Sequence[str], reply: str, ids: dict[str, list[int]]) -> list[int]:
    """A reply's ids behind the first text that the tokenizer does not join it with; else those of the reply alone."""
    for lead in before:
        count = len(ids[lead])
        if ids[lead + reply][:count] == ids[lead]:
            return ids[lead + reply][count:]
    return ids[reply]
