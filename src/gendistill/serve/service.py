"""What is served: a model under a name, its limits, and how a body becomes a call."""

import asyncio
import math
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gendistill.compute import start_compute
from gendistill.data.chat import render_prompt
from gendistill.errors import UserError
from gendistill.inference.decoding import can_decode
from gendistill.inference.generation import pad_id
from gendistill.inference.stopping import end_ids
from gendistill.models.loading import load_config, load_model, load_tokenizer
from gendistill.models.positions import most_positions
from gendistill.serve.call import Call
from gendistill.serve.engine import Engine
from gendistill.serve.errors import ApiError
from gendistill.serve.metrics import Metrics
from gendistill.serve.protocol import Body, ChatBody

LONGEST_WAIT = 60  # seconds that a client is told to wait, at most
BYTES_PER_TOKEN = 64  # of the context; a body may be that long, and long words and JSON's escapes are in it
LEAST_BODY = 2**20  # bytes that a body may have whatever the context


@dataclass
class Service:
    """A model that is served.

    Attributes:
        context: tokens of a prompt and its reply together, at most.
        key: what clients have to know; None for nothing.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int
    rows: int
    queue: int
    key: str | None = None
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self):
        self.ends = end_ids(self.model, self.tokenizer)  # of every reply; the model has to know how one ends
        how = dict(ends=self.ends, pad=pad_id(self.tokenizer), rows=self.rows, queue=self.queue)
        self.engine = Engine(self.model, **how)
        # One at a time: a tokenizer's settings may change while it encodes.
        self.encoding = asyncio.Lock()

    @property
    def most_bytes(self) -> int:
        """Bytes of a body."""
        return max(LEAST_BODY, self.context * BYTES_PER_TOKEN)

    async def call(self, body: Body) -> Call:
        """The call that a body asks for, which the engine has begun to answer.

        Raises:
            ApiError: another model, a prompt that cannot be rendered or does not fit, or no room in the queue.
        """
        if body.model != self.name:
            message = f"there is no model '{body.model}' here; the only one is '{self.name}'"
            raise ApiError(404, message, "model_not_found", "model")
        async with self.encoding:
            # In another thread: long prompts take a while, and the event loop has tokens to send.
            prompts = await asyncio.to_thread(self._prompts, body)
        budgets = [self._budget(len(ids), body.budget) for ids in prompts]
        # A stop string that is one added token is never seen in the text, which is without those.
        ends = end_ids(self.model, self.tokenizer, body.stop) if body.stop else self.ends
        # Drawn where the client gives none: the same call again then gets another sample.
        seed = secrets.randbits(63) if body.seed is None else body.seed
        call = Call(self.engine, self.tokenizer, self.metrics, body, prompts, budgets, ends, seed)
        try:
            call.submit()
        except ApiError as error:
            if error.status == 429:
                error.headers["Retry-After"] = str(self._seconds_to_wait())
            raise
        # From here on whoever answers has to see that its rows are given away.
        return call

    def _prompts(self, body: Body) -> list[list[int]]:
        if isinstance(body, ChatBody):
            try:
                return [render_prompt(self.tokenizer, [message.to_dict() for message in body.messages])]
            except UserError as error:
                raise ApiError(400, str(error), "invalid_value", "messages") from None
        return [self._encoded(prompt) for prompt in body.prompt]

    def _encoded(self, prompt: str | list[int]) -> list[int]:
        """Ids of a text, whose control tokens are meant as such, or those that a client gives."""
        # Not verbose: that it is too long is said below, with numbers.
        ids = self.tokenizer(prompt, verbose=False).input_ids if isinstance(prompt, str) else prompt
        if not ids:
            raise ApiError(400, "the prompt is empty; give at least one token", "invalid_value", "prompt")
        # An id that is not there would be an error on the device, for everybody.
        vocabulary = self.model.config.get_text_config().vocab_size
        if (largest := max(ids)) >= vocabulary:
            message = f"token id {largest}: the model's ids are 0 to {vocabulary - 1}"
            raise ApiError(400, message, "invalid_value", "prompt")
        return ids

    def _budget(self, prompt: int, asked: int | None) -> int:
        """New tokens of a reply: those asked for, or all that the context leaves."""
        new = asked or max(1, self.context - prompt)  # at least one, so that a prompt which fills the context is told
        if prompt + new > self.context:
            raise ApiError(
                400,
                f"the context is {self.context} tokens, the prompt has {prompt} and {new} new ones are to follow: "
                f"{prompt + new}. Shorten the prompt or ask for fewer new tokens",
                "context_length_exceeded",
                "messages" if asked is None else "max_tokens",
            )
        return new

    def _seconds_to_wait(self) -> int:
        """Until a place is likely to be free: by how long calls took so far, and how many are to end before."""
        ahead = max(1.0, self.engine.open / self.rows)  # how often the rows have to change hands
        return min(LONGEST_WAIT, max(1, math.ceil(self.metrics.duration.mean * ahead)))


def load_service(
    name_or_folder: str, *, name: str | None, context: int | None, device: str, dtype: str, **limits
) -> Service:
    """A service of a model that is loaded here.

    Args:
        name: what clients call it; None: the folder's name.
        context: see `context_of`.
        device, dtype: auto, or as in a recipe.
        limits: rows, queue and key, see `Service`.

    Raises:
        UserError: see `load_model`, `load_tokenizer` and `context_of`; or the decoding loop does not know its layers.
    """
    compute = start_compute(_Auto(device, dtype))
    # Configuration, limits and tokenizer before gigabytes of weights.
    config = load_config(name_or_folder)
    context = context_of(config.get_text_config(), context)
    tokenizer = load_tokenizer(name_or_folder, config.get_text_config().vocab_size)
    model = load_model(name_or_folder, compute.dtype, compute.device)
    if not can_decode(model):
        raise UserError(
            f"'{name_or_folder}': a {type(model).__name__} cannot be served here; served are students, and teachers of "
            "the families that gendistill converts"
        )
    return Service(name or _name_of(name_or_folder), model, tokenizer, context, **limits)


@dataclass(frozen=True)
class _Auto:
    """How a model computes that is served without a recipe."""

    device: str
    dtype: str
    backend: str = "auto"
    compile: bool = False


def _name_of(name_or_folder: str) -> str:
    """A folder's own name, of students in a run folder that of the run and the stage; a hub id as it is."""
    folder = Path(name_or_folder)
    if not folder.is_dir():
        return name_or_folder
    # runs/demo/4-instruction_distillation/student: every student's own folder is called so.
    parts = folder.resolve().parts
    return "-".join(parts[-3:-1]) if parts[-1] == "student" else parts[-1]


def context_of(config: PreTrainedConfig, asked: int | None) -> int:
    """Tokens of a prompt and its reply together.

    Args:
        asked: None for all that the model's positions reach.

    Raises:
        UserError: more than those are asked for, or the model does not say how many it has.
    """
    limit = most_positions(config)
    if asked is None and limit is None:
        raise UserError("the model's configuration does not say how far its positions reach; give --context")
    if asked is not None and limit is not None and asked > limit:
        raise UserError(f"--context {asked}: the model's positions reach {limit} tokens; give at most that")
    return asked or limit
