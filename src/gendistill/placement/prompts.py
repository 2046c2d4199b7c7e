"""Prompts with their right answers, as one batch.

Shapes: N prompts, T tokens of the longest with its answer, K predicted tokens of all answers together.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from transformers import PreTrainedModel

from gendistill.data.chat import ends_of_turns
from gendistill.errors import UserError
from gendistill.evaluate.kinds.recall import AnsweredPrompt, recall_prompts
from gendistill.models.positions import most_positions
from gendistill.recipe.placement import Measured


class Answered(NamedTuple):
    """Prompts and answers, padded on the right: attention is causal, so that padding changes nothing before it.

    Attributes:
        input_ids: [N, T].
        tokens: of all prompts and answers, without padding.
        rows, columns: [K], the place whose hidden state predicts each token.
        targets: [K], the tokens; of the end of a turn one of those that end it.
        is_end: [K], where the turn is to end.
        ends: the tokens that end a turn.
    """

    input_ids: torch.Tensor
    tokens: int
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    is_end: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def batch(cls, prompts: Sequence[AnsweredPrompt], ends: set[int], device: torch.device | str) -> Self:
        texts = [prompt + answer for prompt, answer in prompts]
        longest = max(map(len, texts))
        padded = [text + [0] * (longest - len(text)) for text in texts]
        rows, columns, targets = [], [], []
        for row, (prompt, answer) in enumerate(prompts):
            # The token at a place is predicted one place before it.
            rows += [row] * (len(answer) + 1)
            columns += range(len(prompt) - 1, len(prompt) + len(answer))
            targets += [*answer, min(ends)]
        last = [row != after for row, after in zip(rows, [*rows[1:], None], strict=True)]
        places = (torch.tensor(x, device=device) for x in (rows, columns, targets, last, sorted(ends)))
        return cls(torch.tensor(padded, device=device), sum(map(len, texts)), *places)


class PromptMaker:
    """Makes the recall prompts that a placement measures on; the first ones are the same for any number."""

    def __init__(self, settings: Measured, tokenizer, teacher: PreTrainedModel, seed: int):
        self.settings, self.tokenizer, self.seed = settings, tokenizer, seed
        self.positions, self.device = most_positions(teacher.config), teacher.device
        self.ends = ends_of_turns(tokenizer)

    def first(self, count: int) -> Answered:
        """The first so many as one batch."""
        return self.batch(self.make(count))

    def make(self, count: int) -> list[AnsweredPrompt]:
        """The first so many.

        Raises:
            UserError: the model cannot read so long a prompt with its answer; or see `recall_prompts`.
        """
        prompts = recall_prompts(self.tokenizer, self.settings.length, count, self.seed, keys=self.settings.keys)
        longest = max(len(prompt) + len(answer) for prompt, answer in prompts)
        if longest > self.positions:
            raise UserError(
                f"keep_attention.length is {self.settings.length}: with its answer a prompt has {longest} tokens, and "
                f"the teacher's positions end at {self.positions}. Give a shorter length."
            )
        return prompts

    def batch(self, prompts: Sequence[AnsweredPrompt]) -> Answered:
        return Answered.batch(prompts, self.ends, self.device)
