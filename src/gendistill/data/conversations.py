"""Records to conversations, in the forms people store them, and what of a record is not learnt, and why.

Forms: a list of messages ({role, content}, or ShareGPT's {from, value}), a prompt and a completion as texts, the two
as lists of messages. A content is a text or a list of parts of type text.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from gendistill.errors import UserError
from gendistill.recipe.data import Source

Message = dict[str, Any]  # "role" and "content", both str; "weight" where one was given: 0 is context only, 1 is learnt

ROLES = ("system", "user", "assistant")
# ShareGPT's names of the roles; OpenAI's later name of the system.
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "developer": "system"}
SPEAKERS |= {role: role for role in ROLES}
# What these roles say belongs to a tool call.
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
TOOL_KEYS = ("tool_calls", "function_call")
TOOL_PARTS = ("tool_use", "tool_result", "tool_call", "tool_calls")

# Why a record that is well formed is not learnt.
EMPTY_REPLY = "empty reply"
TOOL_CALLS = "tool calls"
OTHER_PARTS = "parts other than text"
NO_WEIGHT = "every reply has weight 0"
EMPTY_TEXT = "empty text"

# Words in the name of a field that holds part of the prompt, where nothing says that it is a label.
PROMPT_WORDS = set(
    "input inputs context contexts passage passages paragraph document article background premise hypothesis story "
    "system instruction instructions question query prompt hint evidence knowledge dialogue history choices options "
    "tools schema table constraint constraints".split()
)
LABEL_WORDS = set("id ids hash name type kind url source lang language category topic tokens length version".split())
# Replies that are not the one that is learnt.
REPLY_WORDS = set("output response completion answer reply chosen rejected reference solution explanation".split())
LONG_TEXT = 500  # characters that are hardly a label, whatever the field is called
# Zero-width characters and marks of direction are no white space for Python, but nothing can be seen of them.
VISIBLE = re.compile("[^\\s\u200b-\u200f\u2060\ufeff]")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


class Skipped(NamedTuple):
    """A record that is well formed and is not learnt: counted by its reason."""

    where: str
    reason: str


class _NotLearnt(Exception):
    """Leaves a record with the reason for which it is skipped."""


class Conversation(NamedTuple):
    """The messages of a record, and what stands beside them that is not used ("field 'context'")."""

    messages: list[Message]
    ignored: tuple[str, ...]


def read_conversation(record: dict, source: Source, where: str) -> Conversation | Skipped:
    """A record's conversation, ending with the assistant.

    Raises:
        UserError: the record is malformed.
    """
    ignored: list[str] = []
    try:
        if source.messages is not None:
            messages = _messages(field(record, source.messages, list, where), where, ignored)
        else:
            messages = _exchange(record, source, where, ignored)
        _check_order(messages, where)
        if not any(_is_learnt(message) for message in messages):
            raise _NotLearnt(NO_WEIGHT)
    except _NotLearnt as skipped:
        return Skipped(where, str(skipped))
    used = [message["content"] for message in messages]
    return Conversation(messages, tuple(dict.fromkeys(ignored + _left_out(record, source, used))))


def _exchange(record: dict, source: Source, where: str, ignored: list[str]) -> list[Message]:
    """A prompt and a completion, each a text or a list of messages; of the prompt nothing is learnt."""
    prompt = field(record, source.prompt, str | list, where)
    # A table without a reply in a row has null there.
    completion = field(record, source.completion, str | list | None, where) or ""
    if isinstance(prompt, list):
        messages = _messages(prompt, where, ignored)
        messages = [said | {"weight": 0} if said["role"] == "assistant" else said for said in messages]
    else:
        messages = [{"role": "user", "content": prompt}]
    if source.input is not None and lookup(record, source.input):  # many records have none of their own
        if isinstance(prompt, list):
            raise UserError(f"{where}: field '{source.input}' goes below a prompt that is a text; this one is a list")
        messages[0]["content"] += "\n\n" + field(record, source.input, str, where)
    if isinstance(completion, list):
        return messages + _messages(completion, where, ignored)
    return [*messages, _reply(completion)]


def _reply(text: str) -> Message:
    if is_blank(text):
        raise _NotLearnt(EMPTY_REPLY)  # a model that learns it says nothing
    return {"role": "assistant", "content": text}


def _messages(stored: list, where: str, ignored: list[str]) -> list[Message]:
    messages = []
    for number, message in enumerate(stored, 1):
        turn = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{turn}: should be an object with 'role' and 'content', this is {kind_name(message)}")
        messages.append(_message(message, turn, ignored))
    return messages


def _message(message: dict, where: str, ignored: list[str]) -> Message:
    """One message in the one form; keys that are not known are named in `ignored`."""
    # A file of columns has every key in every record, null where there was none.
    given = {key: value for key, value in message.items() if value not in (None, [], {})}
    from_value = "from" in given and "role" not in given
    keys = ("from", "value") if from_value else ("role", "content")
    if any(key in given for key in TOOL_KEYS):
        raise _NotLearnt(TOOL_CALLS)
    name = field(given, keys[0], str, where)
    if name in TOOL_ROLES:
        raise _NotLearnt(TOOL_CALLS)
    speakers = SPEAKERS if from_value else {role: role for role in (*ROLES, "developer")} | {"developer": "system"}
    role = speakers.get(name)
    if role is None:
        raise UserError(f"{where}: unknown role '{name}'; roles are {', '.join(SPEAKERS if from_value else ROLES)}")
    made: Message = {"role": role, "content": _content(message, keys[1], role, where)}
    if "weight" in given:
        made["weight"] = _weight(given["weight"], where)
    # A turn that is context only teaches nothing, also not to say nothing.
    if _is_learnt(made) and is_blank(made["content"]):
        raise _NotLearnt(EMPTY_REPLY)
    ignored += [f"message key '{shown(key)}'" for key in given if key not in (*keys, "weight")]
    return made


def _content(message: dict, key: str, role: str, where: str) -> str:
    """The text of a message: as it is, or of its parts, without anything between them."""
    if role == "assistant" and key in message and message[key] is None:
        return ""
    content = field(message, key, str | list, where)
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content, 1):
        place = f"{where}: field '{key}': part {number}"
        if not isinstance(part, dict):
            raise UserError(f"{place}: should be an object with 'type' and 'text', this is {kind_name(part)}")
        kind = field(part, "type", str, place)
        if kind in TOOL_PARTS:
            raise _NotLearnt(TOOL_CALLS)
        if kind != "text":
            raise _NotLearnt(OTHER_PARTS)  # what is said of an image cannot be learnt without it
        texts.append(field(part, "text", str, place))
    return "".join(texts)


def _weight(weight: Any, where: str) -> int:
    if weight not in (0, 1):
        raise UserError(f"{where}: weight is {shown(weight)}; it is 1 for a turn that is learnt, 0 for context only")
    return int(weight)


def _is_learnt(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) == 1


def _check_order(messages: list[Message], where: str) -> None:
    asked = False
    for number, message in enumerate(messages, 1):
        asked = asked or message["role"] == "user"
        if message["role"] == "assistant" and not asked:
            raise UserError(
                f"{where}: message {number}: the assistant speaks before the user; a reply needs a user's turn before "
                "it"
            )
    if not messages or messages[-1]["role"] != "assistant":
        last = f"the last turn is the {messages[-1]['role']}'s" if messages else "there are no messages"
        raise UserError(f"{where}: {last}; a conversation to train on ends with the assistant's turn")


def _left_out(record: dict, source: Source, used: list[str]) -> list[str]:
    """Fields beside those used that look like part of the prompt, by their names or as long text."""
    taken = {each for name in source.fields for each in (name, name.split(".")[0])}
    return [
        f"field '{shown(name)}'"
        for name, value in record.items()
        if name not in taken and _is_of_prompt(str(name), value) and not _is_within(value, used)
    ]


def _is_of_prompt(name: str, value: Any) -> bool:
    if not value or not isinstance(value, str | list) or (isinstance(value, str) and is_blank(value)):
        return False
    kind = _kind_of_name(name)
    return kind == "prompt" or (kind == "unknown" and isinstance(value, str) and len(value) >= LONG_TEXT)


@lru_cache(1000)  # the names of one record are those of the next
def _kind_of_name(name: str) -> str:
    words = [word.lower() for word in WORD.findall(name)]
    if not words:
        return "unknown"
    if words[-1] in PROMPT_WORDS:  # what comes last says what it is: answer_choices, source_passage
        return "prompt"
    if words[-1] in LABEL_WORDS:
        return "unknown"
    if REPLY_WORDS.intersection(words):
        return "reply"
    return "prompt" if PROMPT_WORDS.intersection(words) else "unknown"


def _is_within(value: str | list, used: list[str]) -> bool:
    """Whether a field repeats what is used, or is made of it (alpaca's `text` is the rendered record)."""
    if not isinstance(value, str):
        return False
    return any(value.strip() in text or text.strip() in value for text in used if text.strip())


def is_blank(text: str) -> bool:
    """Whether there is nothing to be seen in a text."""
    return VISIBLE.search(text) is None


def lookup(record: dict, name: str) -> Any:
    """The value of a field, "a.b" being the field b in the field a where no field has that name; None without one."""
    if name in record or "." not in name:
        return record.get(name)
    outer, inner = name.split(".", 1)
    held = record.get(outer)
    return lookup(held, inner) if isinstance(held, dict) else None


def _has(record: dict, name: str) -> bool:
    if name in record or "." not in name:
        return name in record
    outer, inner = name.split(".", 1)
    return isinstance(record.get(outer), dict) and _has(record[outer], inner)


def field(record: dict, name: str, kind: Any, where: str) -> Any:
    """The value of a field.

    Raises:
        UserError: there is none, or it is not of the kind: str, list, either, or either and None.
    """
    value = record[name] if name in record else lookup(record, name)  # nearly always the first
    if isinstance(value, kind) and (value is not None or _has(record, name)):
        if isinstance(value, str):  # what is in a list is checked message by message
            _check_text(value, f"{where}: field '{name}'")
        return value
    if not _has(record, name):
        raise UserError(
            f"{where}: no field '{name}'; the record has: {shown(', '.join(map(str, record))) or 'no fields'}"
        )
    expected = {str: "a string", list: "a list"}.get(kind, "a string or a list")
    raise UserError(f"{where}: field '{name}' should be {expected}, this is {kind_name(value)}")


def _check_text(text: str, where: str) -> None:
    # JSON can spell half of a surrogate pair ("\ud83d"), which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half a surrogate pair at character {error.start}; write the text anew as UTF-8"
        ) from None


def kind_name(value: Any) -> str:
    """What a value is, for an error message."""
    return "null" if value is None else f"a {type(value).__name__}"


def shown(value: Any) -> str:
    """A name or value from a record as it may be printed: short, and without half surrogate pairs."""
    return str(value)[:200].encode("utf-8", "backslashreplace").decode()
