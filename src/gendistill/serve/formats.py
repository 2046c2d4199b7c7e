"""Replies in OpenAI's two forms: chat completions and text completions, whole or as the chunks of a stream."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from gendistill.serve.call import Delta
from gendistill.serve.protocol import Body, ChatBody, CompletionBody
from gendistill.serve.text import HALF, Token


class ChatFormat:
    """Of /v1/chat/completions."""

    body = ChatBody
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def whole(self, text: str, logprobs: dict | None) -> dict[str, Any]:
        """A choice's own part of a whole response."""
        # Keys that are always null stand there all the same: clients read them without asking.
        return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}

    def chunk(self, text: str, logprobs: dict | None, is_first: bool) -> dict[str, Any]:
        """A choice's own part of a chunk; the first says whose turn it is."""
        role = {"role": "assistant"} if is_first else {}
        return {"delta": role | {"content": text}, "logprobs": logprobs}

    def logprobs(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token], top: int) -> dict[str, Any]:
        """Log-probabilities of tokens, with those of the `top` likeliest of each place."""
        entries = []
        for token in tokens:
            likeliest = [_entry(tokenizer, id, value) for id, value in token.likelihood.top[:top]]
            entries.append(_entry(tokenizer, token.id, token.likelihood.logprob) | {"top_logprobs": likeliest})
        return {"content": entries, "refusal": None}


class CompletionFormat:
    """Of /v1/completions."""

    body = CompletionBody
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def whole(self, text: str, logprobs: dict | None) -> dict[str, Any]:
        """A choice's own part of a whole response."""
        return {"text": text, "logprobs": logprobs}

    def chunk(self, text: str, logprobs: dict | None, is_first: bool) -> dict[str, Any]:
        """A choice's own part of a chunk."""
        return self.whole(text, logprobs)

    def logprobs(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token], top: int) -> dict[str, Any]:
        """Log-probabilities of tokens, with those of the `top` likeliest of each place and of the token itself."""
        found: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = tokenizer.decode([token.id])
            # In this form by their texts, which several tokens may share.
            likeliest: dict[str, float] = {}
            for id, value in token.likelihood.top[:top]:
                likeliest.setdefault(tokenizer.decode([id]), value)  # the likeliest comes first, and stays
            likeliest.setdefault(text, token.likelihood.logprob)
            found["tokens"].append(text)
            found["token_logprobs"].append(token.likelihood.logprob)
            found["top_logprobs"].append(likeliest)
            found["text_offset"].append(token.offset)
        return found


Format = ChatFormat | CompletionFormat


def _entry(tokenizer: PreTrainedTokenizerBase, id: int, logprob: float) -> dict[str, Any]:
    text = tokenizer.decode([id])
    # Of a token that is part of a character only its bytes would say something, and tokenizers do not tell them.
    return {"token": text, "logprob": logprob, "bytes": None if HALF in text else list(text.encode())}


class Response:
    """The response to a call, put together of its deltas."""

    def __init__(self, form: Format, model: str, tokenizer: PreTrainedTokenizerBase, body: Body, choices: int):
        self.form, self.tokenizer, self.body = form, tokenizer, body
        self.head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        # By the reply's index; deltas of several replies come in any order.
        self.deltas: list[list[Delta]] = [[] for _ in range(choices)]

    def add(self, delta: Delta) -> None:
        """Takes in a delta of a whole response."""
        self.deltas[delta.index].append(delta)

    def whole(self, usage: dict[str, int]) -> dict[str, Any]:
        """The response, once all deltas are there."""
        choices = []
        for index, deltas in enumerate(self.deltas):
            text = "".join(delta.text for delta in deltas)
            logprobs = self._logprobs([token for delta in deltas for token in delta.tokens])
            choice = self.form.whole(text, logprobs)
            choices.append({"index": index, **choice, "finish_reason": deltas[-1].finish})
        return self.head | {"object": self.form.whole_object, "choices": choices, "usage": usage}

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """A delta as a chunk of a stream. It may have the text of several tokens: all that came since the last."""
        # OpenAI's clients take the role from a reply's first chunk alone.
        is_first = not self.deltas[delta.index]
        self.deltas[delta.index] = [delta]  # what was sent need not be kept
        choice = self.form.chunk(delta.text, self._logprobs(delta.tokens), is_first)
        return self._chunk([{"index": delta.index, **choice, "finish_reason": delta.finish}], None)

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk of a stream that asked for the usage."""
        return self._chunk([], usage)

    def _chunk(self, choices: list[dict], usage: dict[str, int] | None) -> dict[str, Any]:
        chunk = self.head | {"object": self.form.chunk_object, "choices": choices}
        # Null in all chunks but the last, and only where it was asked for: so OpenAI's.
        return chunk | {"usage": usage} if self.body.stream_options.include_usage else chunk

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        return None if self.body.top is None else self.form.logprobs(self.tokenizer, tokens, self.body.top)


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Tokens of prompts and replies."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
