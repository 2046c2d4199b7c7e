"""Steps of which a share of the sequences holds the student's own replies.

A step's replies are written when the step is asked for, so with the weights that the step before left. All else is as
in other stages: the sequences come from the same data set in the same order, have the same length, and go through the
same loss.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gendistill.console import Console
from gendistill.data.dataset import PackedDataset
from gendistill.distill.batches import Loader, Step
from gendistill.distill.replies import (
    Prompt,
    ReplyLog,
    ReplyTokens,
    ReplyWriter,
    count_replies,
    lay_out,
    prompts_of,
)
from gendistill.distill.reply_kl import ReplyKL, ReplyKLCheck
from gendistill.distributed import of_all_processes
from gendistill.recipe.stage import Stage

Replies = dict[tuple[int, int], list[int]]  # new ids, by the sequence's number and the conversation's place in it


@dataclass(frozen=True)
class Writing:
    """What a stage in which the student writes replies needs besides its data.

    Attributes:
        held_out: prompts on which the reply-KL is measured while it trains.
        before: the reply-KL on them that the student begins with; None: it is not watched.
    """

    tokens: ReplyTokens
    held_out: Sequence[Prompt] = ()
    before: ReplyKL | None = None

    def check(self, stage: Stage, title: str, measure: Callable[[], ReplyKL], console: Console) -> ReplyKLCheck | None:
        """What stops the stage when the reply-KL rises."""
        if self.before is None:
            return None
        return ReplyKLCheck(title, self.before, stage.on_policy.reply_kl_bound, measure, console.print)


class OnPolicyLoader(Loader):
    """The steps of an on-policy stage; arguments beside these as of `Loader`."""

    def __init__(self, dataset: PackedDataset, stage: Stage, writer: ReplyWriter, log: ReplyLog, **options):
        super().__init__(dataset, stage, **options)
        self.writer, self.log, self.settings = writer, log, stage.on_policy
        if self.fixed_shape:
            # Shorter replies leave padding where there was none: one document more in each sequence.
            self.packed, self.documents = True, self.documents + stage.micro_batch

    def steps(self, first: int) -> Iterator[Step]:
        """Steps from `first` to the stage's last, none made before it is asked for."""
        self.log.open(first)  # here, since only now it is known where a stage resumes
        for index in range(first, self.stage.steps):
            yield self.step(index)

    def step(self, index: int) -> Step:
        rows = self._rows(index)  # of all processes, each [S, T]
        start = index * self.stage.sequences_per_step
        # Of those sequences that the student writes in, by their numbers in the data set.
        prompts = {
            number: found
            for number, found in enumerate(prompts_of(rows, start), start)
            if self.settings.is_written(number)
        }
        limit = self.settings.most_new_tokens(index, self.stage.steps)
        replies = self._replies(index, prompts, limit)
        # Of a memory-mapped data set the rows are copies already; of any other they may be its own.
        rows = {name: np.array(column) for name, column in rows.items()}
        for number, asked in prompts.items():
            row = {name: column[number - start] for name, column in rows.items()}
            said = [replies[number, prompt.place] for prompt in asked]
            for name, values in lay_out(row, asked, said, self.writer.tokens.pad).items():
                rows[name][number - start] = values
        # Counted as written, also what did not fit its sequence.
        asked = [prompt for found in prompts.values() for prompt in found]
        said = [replies[prompt.row, prompt.place] for prompt in asked]
        return self._step(index, rows, count_replies(asked, said, limit, self.writer.tokens))

    def _replies(self, index: int, prompts: dict[int, list[Prompt]], limit: int) -> Replies:
        """Replies to all processes' prompts: as the log has them, or written now, each process to its own."""
        if (known := self.log.found.pop(index, None)) is not None:
            return known  # written before the stage was stopped
        # This process's own, one contiguous part as in every stage.
        first = index * self.stage.sequences_per_step + self.offset
        mine = [prompt for row in range(first, first + self.share) for prompt in prompts.get(row, ())]
        written = self.writer.write(
            [prompt.ids for prompt in mine],
            limit,
            self.settings.temperature,
            [f"on-policy {prompt.row} {prompt.place}" for prompt in mine],
        )
        own = {(prompt.row, prompt.place): ids for prompt, ids in zip(mine, written, strict=True)}
        # Every process needs all of them: the loss is divided by the tokens of the whole step.
        replies = {key: ids for part in of_all_processes(own) for key, ids in part.items()}
        self.log.add(index, replies)
        return replies
