"""What a body may ask for: checked strictly, and refused where it asks for what is not done here.

A parameter that would change the reply is never ignored. Those that change nothing are let through: labels, and values
that say what holds anyway ("frequency_penalty": 0).
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gendistill.inference.sampling import TOP
from gendistill.serve.errors import ApiError

LEAST_TEMPERATURE = 1e-4  # above 0: by a smaller one logits would be divided into infinities
COMPLETION_TOKENS = 16  # of /v1/completions where the body does not say, as OpenAI's
MOST_CHOICES = 128
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # change no reply
# Values of parameters that are not supported which ask for nothing. None counts as not given everywhere.
NEUTRAL: dict[str, list] = {
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "logit_bias": [{}],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "tools": [[]],
    "functions": [[]],
    "store": [False],
    "service_tier": ["auto", "default"],
}


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopString = Annotated[Text, Field(min_length=1)]


def _as_prompts(given: Any) -> list[str] | list[list[int]]:
    """A prompt is a text or token ids; several are a list of them."""
    prompts = [given] if isinstance(given, str) or _are_ids(given) else given
    if isinstance(prompts, list) and prompts:
        if all(isinstance(prompt, str) for prompt in prompts):
            return [_encodable(prompt) for prompt in prompts]
        if all(map(_are_ids, prompts)):
            return prompts
    raise ValueError("give a text, token ids (whole numbers from 0 on), or a list of texts or of lists of token ids")


def _are_ids(given: Any) -> bool:
    # An empty list is no prompt, but several of them are: then the error is that one is empty.
    return isinstance(given, list) and all(type(id) is int and id >= 0 for id in given)


class _Strict(BaseModel):
    # Strict: "0" is no number and true no 1. Forbidden: what is not known here would be ignored.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Part(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text  # of images and sound these models know nothing


def _as_parts(content: Any) -> Any:
    # Before the check, not as a union of types: then the error is of the type that was meant.
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Strict):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]

    def to_dict(self) -> dict[str, str]:
        """As templates take it."""
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class StreamOptions(_Strict):
    """What a stream has besides its replies."""

    include_usage: bool = False  # as one more chunk, behind the last


class Body(_Strict):
    """What both endpoints take."""

    model: str  # required, so that a client that means another model is told
    n: int = Field(1, ge=1, le=MOST_CHOICES)  # replies to each prompt
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None  # None draws one
    stop: Annotated[list[StopString], Field(max_length=4), BeforeValidator(_as_list)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


Kind = TypeVar("Kind", bound=Body)


class ChatBody(Body):
    """Of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)  # OpenAI's newer name of max_tokens
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=TOP)

    @property
    def budget(self) -> int | None:
        """New tokens of a reply; None for all that the context leaves."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """Likeliest tokens to be told of at each place; None for no log-probabilities."""
        # 0 is not None: then there are those of the chosen tokens alone.
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionBody(Body):
    """Of /v1/completions."""

    prompt: Annotated[list[str] | list[list[int]], BeforeValidator(_as_prompts)]
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def budget(self) -> int | None:
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def top(self) -> int | None:
        return self.logprobs


def parse(kind: type[Kind], raw: bytes) -> Kind:
    """The body of a request.

    Raises:
        ApiError: 400: it is no JSON, or asks for something that is not done here.
    """
    try:
        # JSON knows neither NaN nor Infinity, which Python reads.
        given = json.loads(raw, parse_constant=lambda name: _refuse(f"{name} is no JSON"))
    except (ValueError, RecursionError) as error:  # text that is no UTF-8 is a ValueError too
        raise ApiError(400, f"the body is no JSON: {error}", "invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, f"the body is a JSON {type(given).__name__}; give an object", "invalid_json")
    # What is left asks for something, and has to be known.
    asked = {name: value for name, value in _without_nulls(given).items() if not _asks_for_nothing(name, value)}
    try:
        body = kind.model_validate(asked)
    except ValidationError as error:
        raise _explained(error, kind) from None
    _check_together(body, asked)
    return body


def _refuse(reason: str) -> None:
    raise ValueError(reason)


def _without_nulls(value: Any) -> Any:
    """Clients send null for what they leave out: at the top and in messages."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _asks_for_nothing(name: str, value: Any) -> bool:
    return name in LABELS or any(value == neutral for neutral in NEUTRAL.get(name, ()))


def _explained(error: ValidationError, kind: type[Body]) -> ApiError:
    """The first thing that is wrong, as one sentence that names the field."""
    # One of them: the others are often of the same cause.
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        known = ", ".join(kind.model_fields)
        message = f"'{place}' is not supported here; leave it out. Supported are {known}"
        return ApiError(400, message, "unsupported_parameter", place)
    if first["type"] == "missing":
        return ApiError(400, f"'{place}' is missing", "missing_parameter", place)
    reason = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"'{place}': {reason[0].lower()}{reason[1:]}", "invalid_value", place)


def _check_together(body: Body, asked: dict[str, Any]) -> None:
    """Settings that make no sense beside each other, or by a rule that is no range."""
    if 0 < body.temperature < LEAST_TEMPERATURE:
        message = f"'temperature': {body.temperature} is neither 0, which is greedy, nor at least {LEAST_TEMPERATURE}"
        raise ApiError(400, message, "invalid_value", "temperature")
    if "stream_options" in asked and not body.stream:
        raise ApiError(400, "'stream_options' is for streams: set 'stream' to true", "invalid_value", "stream_options")
    if not isinstance(body, ChatBody):
        return
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "'top_logprobs' needs 'logprobs' to be true", "invalid_value", "top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens):
        message = "give 'max_completion_tokens' or 'max_tokens', which mean the same, not both"
        raise ApiError(400, message, "invalid_value", "max_tokens")
