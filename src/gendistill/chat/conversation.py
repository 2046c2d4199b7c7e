"""A model's side of a conversation: its history, its replies while they are written, and what they take."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.data.chat import render_prompt
from gendistill.data.sources import Message
from gendistill.errors import UserError
from gendistill.inference.decoding import Sampling
from gendistill.inference.generation import pad_id
from gendistill.inference.stopping import end_ids
from gendistill.inference.streaming import TextStream, stream_ids
from gendistill.models.cost import expected_cache_bytes
from gendistill.models.positions import most_positions


@dataclass(frozen=True)
class Settings:
    """How replies are written: greedy at temperature 0, else sampled as `Sampling` says."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class Usage:
    """What the last reply took.

    Attributes:
        tokens: of the reply, its end not counted.
        first_seconds: until the first token: prefill of the whole conversation.
        seconds: from then on.
        context: tokens of the conversation, the reply among them.
        cut: why the reply stops short of its end; None if it does not.
    """

    tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    context: int = 0
    cut: str | None = None

    @property
    def tokens_per_second(self) -> float:
        """Behind the first token, which prefill has made; 0 for a reply without others."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0


class Conversation:
    """What one model has been asked and has answered.

    Attributes:
        messages: user and assistant in turn, each pair whole.
        limit: positions of the model; None if its configuration does not say.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings):
        """Raises UserError if the model cannot chat: no chat template, or nothing that ends a reply."""
        self.name, self.model, self.tokenizer, self.settings = name, model, tokenizer, settings
        self.ends, self.pad = end_ids(model, tokenizer), pad_id(tokenizer)
        self.limit = most_positions(model.config)
        self.messages: list[Message] = []
        self.usage = Usage()
        render_prompt(tokenizer, [{"role": "user", "content": "hi"}])  # a model without a template is refused at once

    def reset(self) -> None:
        """Forgets everything that was said."""
        self.messages = []
        self.usage = Usage()

    def ask(self, question: str) -> Iterator[str]:
        """The reply, piece by piece; stands in the history when the iterator ends or is closed, as far as it came.

        Raises:
            UserError: the template refuses the question, or the context has no room for a reply; the question is then
                no part of the history.
        """
        asked: Message = {"role": "user", "content": question}
        # All of it anew: templates show past turns otherwise than they were generated, and a recurrence cannot go back.
        prompt = render_prompt(self.tokenizer, [*self.messages, asked])
        budget, cut = self._budget(len(prompt))
        text = TextStream(self.tokenizer)
        self.usage = usage = Usage(context=len(prompt))  # filled while the reply comes in
        began = time.perf_counter()
        try:
            yield from self._reply(prompt, budget, text, usage)
            if usage.tokens == budget:  # an end is not counted, so a reply that has one has fewer
                usage.cut = cut
            yield text.finish()
        finally:  # whoever stops reading closes this generator
            usage.seconds = max(0.0, time.perf_counter() - began - usage.first_seconds)
            self.messages += [asked, {"role": "assistant", "content": text.text}]

    def _reply(self, prompt: list[int], budget: int, text: TextStream, usage: Usage) -> Iterator[str]:
        began = time.perf_counter()
        ids = stream_ids(
            self.model, prompt, budget, ends=self.ends, pad=self.pad, sampling=self._sampling(len(self.messages))
        )
        for id in ids:
            # Prefill, of which nothing is seen until its one token is there.
            usage.first_seconds = usage.first_seconds or time.perf_counter() - began
            if id in self.ends:
                return
            usage.tokens += 1
            usage.context += 1
            if piece := text.add(id):
                yield piece

    def _budget(self, prompt: int) -> tuple[int, str]:
        """Tokens that a reply to a prompt of so many may have, and what is said of one that has them all."""
        most = self.settings.max_new_tokens
        room = most if self.limit is None else self.limit - prompt
        if room < 1:
            raise UserError(
                f"{self.name}: the conversation has {prompt:,} tokens with this question, and the context ends at "
                f"{self.limit:,}. /reset begins a new one"
            )
        if room < most:
            return room, f"the context of {self.limit:,} tokens is full; /reset begins a new conversation"
        return most, f"--max-new-tokens {most} reached"

    def _sampling(self, turn: int) -> Sampling | None:
        how = self.settings
        # The turn is part of the key: else a question asked twice would draw the same numbers.
        return Sampling(how.temperature, how.top_p, [f"{how.seed}/{turn}"]) if how.temperature else None

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache that the conversation's tokens take."""
        return expected_cache_bytes(self.model.config, self.usage.context, 1, self.model.dtype.itemsize)
