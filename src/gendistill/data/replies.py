"""Replies that somebody else gives, as the ids that they have behind a prompt."""

from collections.abc import Sequence

from gendistill.data.chat import Prompt
from gendistill.data.rendering import PROBE, Template
from gendistill.errors import UserError


def reply_ids(tokenizer, prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """The ids of replies as they stand behind their prompts, each: what training learns, and generation can say.

    A tokenizer may encode a text otherwise at its beginning than behind other text: SentencePiece puts a space in front
    there. Where it joins a reply with the prompt's end, so that no ids of the reply follow the prompt's, they are those
    behind a line break, or of the reply alone if it joins that too.

    Args:
        replies: those to each prompt.

    Raises:
        UserError: no chat template; a reply holds U+FDD0.
    """
    template = Template(tokenizer)
    tails = [[_tail(template, prompt.text), "\n"] for prompt in prompts]
    texts = []  # of each prompt's replies, as they stand behind it
    known: dict[tuple, str] = {}  # blanks of conversations of the same roles and the same end, so few are rendered
    for prompt, given, (tail, _) in zip(prompts, replies, tails, strict=True):
        form = tail, *(message["role"] for message in prompt.messages)
        blanks = known[form] if form in known else _blanks_before_reply(template, prompt)
        known[form] = blanks
        texts.append([blanks + template.controls.guard(reply, "a reply", tags=False) for reply in given])
    # In one call of the tokenizer, each once: most prompts end alike, and letters are the same for all of them.
    wanted = []
    for leads, behind in zip(tails, texts, strict=True):
        wanted += [*behind, *(lead + text for lead in leads for text in ("", *behind))]
    ids = template.ids(wanted)
    return [[_ids_behind(leads, text, ids) for text in behind] for leads, behind in zip(tails, texts, strict=True)]


def _tail(template: Template, prompt: str) -> str:
    """A prompt from its last control token on: the tokenizer encodes what stands between two of them for itself."""
    starts = template.controls.starts(prompt)
    return prompt[starts[-1] if starts else 0 :]


def _blanks_before_reply(template: Template, prompt: Prompt) -> str:
    """Blanks that the template puts between the prompt and a reply; they count as the reply's."""
    try:
        text = template.render_prompt([*prompt.messages, {"role": "assistant", "content": PROBE}])
    except UserError:  # a template for prompts alone
        return ""
    between = text.partition(PROBE)[0][len(prompt.text) :]
    return between if text.startswith(prompt.text) and not between.strip() else ""


def _ids_behind(leads: Sequence[str], reply: str, ids: dict[str, list[int]]) -> list[int]:
    """A reply's ids behind the first text that the tokenizer does not join it with; else those of the reply alone."""
    for lead in leads:
        count = len(ids[lead])
        if ids[lead + reply][:count] == ids[lead]:
            return ids[lead + reply][count:]
    return ids[reply]
