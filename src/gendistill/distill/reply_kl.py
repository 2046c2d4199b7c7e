"""Reply-KL: how far a student's own replies lead it away from its teacher, in nats a token, by position.

The student writes a reply to each of some prompts that it was not trained on, sampled at temperature 1. At each token
of it, KL(student || teacher) of the next-token distributions over the full vocabulary. Summed over the tokens of a
reply and averaged over replies, this is the KL divergence of the two models' distributions of whole replies (chain
rule). A loss on the data's own replies says nothing of where the student's own mistakes lead; this does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gendistill.data.packing import lay_out_row, make_piece
from gendistill.distill.batches import make_batch
from gendistill.distill.divergences import predictions
from gendistill.distill.objectives import inputs_of
from gendistill.distill.replies import Prompt, ReplyWriter, count_replies, evaluating
from gendistill.distributed import as_rank_zero_says
from gendistill.errors import Diverged, UserError
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.names import OBJECTIVES

PROMPTS = 64  # held out: the standard error of the mean is an eighth of what replies differ by
MOST_NEW_TOKENS = 256
ROWS_AT_ONCE = 8  # of teacher and student
CHUNK = 256  # tokens whose logits are in memory at once: in float32, some six tensors of the vocabulary's size
MOST_STANDARD_ERRORS = 3.0  # of the change from before a stage, beyond which it has risen
LEAST_RISE = 0.05  # of the value before, below which no change counts as one
LEAST_ENDING = 0.1  # of replies that could end within their budget, as the data's do
WORTH_JUDGING = 8  # such replies


@dataclass(frozen=True)
class ReplyKL:
    """A measurement.

    Attributes:
        mean: over all tokens of all replies, nats.
        by_position: mean at the first token of replies, the second, ...; nats.
        tokens_by_position: how many replies are so long.
        sums: of each reply over its tokens, nats.
        lengths: tokens of each reply, its end included.
        new_tokens: budget of a reply.
        counts: `replies.COUNTS`.
        could_end, ended: replies to prompts whose reply in the data fits the budget, and how many of them ended.
        reference: median tokens of the data's own replies.
    """

    mean: float
    by_position: list[float]
    tokens_by_position: list[int]
    sums: list[float]
    lengths: list[int]
    new_tokens: int
    counts: dict[str, int]
    could_end: int
    ended: int
    reference: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rise_since(self, before: "ReplyKL") -> tuple[float, float]:
        """How much higher the mean is than in an earlier measurement on the same prompts, and its standard error.

        The error is that of a ratio of means, paired by prompt: both measurements drew the same random numbers.
        """
        # Of all tokens, not of replies: a mean of ratios would count a short reply's tokens more.
        means = [sum(x.sums) / sum(x.lengths) for x in (self, before)]
        # What each prompt contributes to the difference beyond its share (the delta method for a ratio).
        residuals = [
            (own - means[0] * length) / fmean(self.lengths) - (old - means[1] * old_length) / fmean(before.lengths)
            for own, length, old, old_length in zip(self.sums, self.lengths, before.sums, before.lengths, strict=True)
        ]
        error = stdev(residuals) / math.sqrt(len(residuals)) if len(residuals) > 1 else math.inf
        return means[0] - means[1], error


def budget_for(prompts: Sequence[Prompt]) -> int:
    """Most tokens of a reply: as many as the longest that the data have to these prompts, and not more than 256."""
    return min(MOST_NEW_TOKENS, max(prompt.reference for prompt in prompts))


def measure_reply_kl(
    teacher: PreTrainedModel,
    student: GendistillForCausalLM,
    writer: ReplyWriter,
    prompts: Sequence[Prompt],
    *,
    vocabulary: int,
) -> ReplyKL:
    """Has the student reply to prompts and compares it with its teacher along the replies.

    Where the models are sharded, all processes call it and compute the same.

    Args:
        writer: of this student.
        prompts: that the student was not trained on.
        vocabulary: words that the tokenizer has; what the models say of ids beyond them does not count.
    """
    new_tokens = budget_for(prompts)
    # The same for every student, so that two measurements differ by the students alone.
    keys = [f"reply-KL {i}" for i in range(len(prompts))]
    replies = writer.write([prompt.ids for prompt in prompts], new_tokens, 1.0, keys)
    if writer.copy is not None:  # sharded models, which all processes run: GPUs may round differently
        written = replies
        replies = as_rank_zero_says(lambda: written)
    values = _values(teacher, student, prompts, replies, vocabulary, writer.tokens.pad)
    longest = max(map(len, values))
    # By position: the values of all replies that are so long.
    at = [[own[position] for own in values if len(own) > position] for position in range(longest)]
    # The data's reply shows that one can end in time.
    could_end = [i for i, prompt in enumerate(prompts) if prompt.reference <= new_tokens]
    return ReplyKL(
        mean=sum(map(sum, values)) / sum(map(len, values)),
        by_position=[fmean(found) for found in at],
        tokens_by_position=[len(found) for found in at],
        sums=[sum(own) for own in values],
        lengths=[len(own) for own in values],
        new_tokens=new_tokens,
        counts=count_replies(prompts, replies, new_tokens, writer.tokens),
        could_end=len(could_end),
        ended=sum(replies[i][-1] in writer.tokens.ends for i in could_end),
        reference=median(prompt.reference for prompt in prompts),
    )


@torch.no_grad()
def _values(
    teacher: PreTrainedModel,
    student: GendistillForCausalLM,
    prompts: Sequence[Prompt],
    replies: Sequence[list[int]],
    vocabulary: int,
    pad: int,
) -> list[list[float]]:
    """KL(student || teacher) at each token of each reply."""
    whole = [[*prompt.ids, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    # One width for all, as compiled layers are compiled for a shape; padding is a document of its own.
    width = max(map(len, whole)) + 1
    values: list[list[float]] = []
    for start in range(0, len(whole), ROWS_AT_ONCE):
        part = range(start, min(start + ROWS_AT_ONCE, len(whole)))
        rows = []
        # A row each, so that a long reply cuts no other off.
        for i in part:
            mask = [0] * len(prompts[i].ids) + [1] * len(replies[i])
            rows.append(lay_out_row([make_piece(whole[i], mask)], width, pad))
        batch = make_batch({name: np.stack([row[name] for row in rows]) for name in rows[0]}, packed=True)
        batch = batch.map(lambda tensor: tensor.to(student.device))
        with evaluating(student):  # the teacher never trains
            hidden = [
                model.model(**inputs_of(model, batch)).last_hidden_state.flatten(0, 1)[batch.predictors]  # [P, D]
                for model in (student, teacher)
            ]
        # Row by row, and in each token by token: the order of `predictors`.
        found = []
        for first in range(0, len(batch.predictors), CHUNK):
            piece = slice(first, first + CHUNK)
            logits = [
                states[piece] @ model.lm_head.weight.T for states, model in zip(hidden, (student, teacher), strict=True)
            ]
            # The teacher's padding beyond the vocabulary and the student's are cut off there.
            sides = predictions(*logits, batch.targets[piece], ["reverse_kl"], vocabulary, 1.0)
            found += OBJECTIVES["reverse_kl"].compute(sides)[0].tolist()
        # Cut apart again, reply by reply.
        for i in part:
            values.append(found[: len(replies[i])])
            found = found[len(replies[i]) :]
    return values


def check_start(name: str, before: ReplyKL, bound: float) -> None:
    """Refuses an on-policy stage whose student is not near enough to its teacher, or never ends.

    Raises:
        UserError: the reply-KL is above the bound, or next to none of the replies ends where the data's do.
    """
    if before.could_end >= WORTH_JUDGING and before.ended < LEAST_ENDING * before.could_end:
        raise UserError(
            f"stages.{name}: the student does not end its replies: {before.ended} of {before.could_end} ended within "
            f"{before.new_tokens} tokens, where the data's replies take {before.reference:g} at the median. Distil it "
            "longer on conversations (loss_on: completion) before this stage, and see with show-batch that the token "
            "that ends a turn is a loss target."
        )
    # Behind the check of ends, whose advice is the better one: endless replies lead far away as well.
    if not before.mean <= bound:  # NaN too
        raise UserError(
            f"stages.{name}: the reply-KL on held-out prompts is {before.mean:.3g} nats a token, and reply_kl_bound is "
            f"{bound:g}: from so far away, learning from its own replies makes a student worse. Distil it longer "
            "before this stage, or raise data.reply_kl_bound to try all the same."
        )


class ReplyKLCheck:
    """Stops an on-policy stage whose held-out reply-KL rises; measured before each checkpoint.

    Risen is a mean above the bound, or above that of before the stage by more than three standard errors of the
    difference, paired by prompt, and by more than a twentieth.
    """

    def __init__(self, title: str, before: ReplyKL, bound: float, measure: Callable[[], ReplyKL], say):
        """`measure` measures the student as it is; `say` prints a line."""
        self.title, self.before, self.bound, self.measure, self.say = title, before, bound, measure, say

    def __call__(self, steps: int) -> None:
        """Raises Diverged if the reply-KL has risen after so many steps."""
        # On the same prompts, with the same random numbers: what differs is the student.
        now = self.measure()
        rise, error = now.rise_since(self.before)
        self.say(
            f"{self.title}: step {steps:,}: reply-KL {now.mean:.4f} nats a token, "
            f"{self.before.mean:.4f} before the stage"
        )
        advice = (
            "The checkpoint before is kept. Lower the learning rate or data.share, take shorter replies "
            "(data.new_tokens), and delete the stage's checkpoints to start it anew."
        )
        # The bound first: a student that was above it from the start may not have risen.
        if not now.mean <= self.bound:
            raise Diverged(
                f"{self.title}, step {steps}: the reply-KL on held-out prompts is {now.mean:.3g} nats a token, above "
                f"reply_kl_bound {self.bound:g} ({self.before.mean:.3g} before the stage). {advice}"
            )
        if rise > max(MOST_STANDARD_ERRORS * error, LEAST_RISE * self.before.mean):
            raise Diverged(
                f"{self.title}, step {steps}: the reply-KL on held-out prompts has risen from {self.before.mean:.3g} "
                f"to {now.mean:.3g} nats a token, by {rise / error:.1f} standard errors ({MOST_STANDARD_ERRORS:g} are "
                f"allowed). {advice}"
            )
