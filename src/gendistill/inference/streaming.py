"""One reply, given out while it is written: its ids as they are decoded, and their text without half characters."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.errors import UserError
from gendistill.inference.batch import DecodingBatch
from gendistill.inference.decoding import Sampling, room_for
from gendistill.inference.prefill import prefill
from gendistill.inference.requests import Request
from gendistill.models.view import as_student

HALF = "\ufffd"  # what a tokenizer makes of bytes that are no whole character, yet


@torch.inference_mode()
def stream_ids(
    model: PreTrainedModel,
    prompt: list[int],
    max_new_tokens: int,
    *,
    ends: Sequence[int],
    pad: int,
    sampling: Sampling | None = None,
) -> Iterator[int]:
    """The new ids of a reply, those that `generate` gives, with the end if it comes in time.

    They come one by one on a CPU; on a GPU up to eight at once, since the host looks no oftener.

    Args:
        ends, pad, sampling: see `Decoding`; one key.

    Raises:
        UserError: the decoding loop does not know the model.
    """
    student = as_student(model)  # a teacher's view, where it is one
    if student is None:
        raise UserError(
            f"{type(model).__name__}: replies are streamed of students, and of teachers of supported families whose "
            "positions do not depend on the text's length"
        )
    how = {}
    if sampling is not None:
        how = dict(temperature=sampling.temperature, top_p=sampling.top_p, key=sampling.keys[0])
    room = room_for(len(prompt) + max_new_tokens)
    prefilled = prefill(model, [prompt], None, room)
    request = Request(prompt, max_new_tokens, **how)
    batch = DecodingBatch(student, prefilled, [request], ends=ends, pad=pad, room=room)  # has the first token already
    given = 0
    while True:
        count = int(batch.counts)
        # Padding stands behind the count.
        yield from batch.replies[0, given:count].tolist()
        given = count
        if bool(batch.done):  # by an end, or by the budget
            return
        batch.decode_steps()


class TextStream:
    """Text of ids that come in one by one: what was given out, joined, is what `generate` says of all of them.

    Blanks at the beginning are left out, as there, and those at the end wait for what follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.given = ""

    def add(self, id: int) -> str:
        """The text that is certain now and was not before; often empty."""
        self.ids.append(id)
        # Of all ids, as a tokenizer may write a token otherwise behind others. Microseconds a token.
        return self._beyond(self.text.rstrip(HALF).rstrip())

    def finish(self) -> str:
        """What is left, half characters too: no more will come."""
        return self._beyond(self.text)

    @property
    def text(self) -> str:
        """Of all ids so far."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()

    def _beyond(self, text: str) -> str:
        # What was shown cannot be taken back; a tokenizer that changes its mind is waited for.
        if not text.startswith(self.given):
            return ""
        new = text[len(self.given) :]
        self.given = text
        return new
