"""Requests between two processes, neither of which runs what the other sends: values travel as JSON."""

import builtins
import importlib
import json
import os
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from gendistill.sandbox.task import MEMORY_STATUS

LENGTH_BYTES = 8  # in front of a message
# Classes that are copied as the text they are written and read as: name, module, to text, from text.
_AS_TEXT = {
    "Decimal": ("decimal", str, None),
    "Fraction": ("fractions", str, None),
    "datetime": ("datetime", lambda value: value.isoformat(), "fromisoformat"),
    "date": ("datetime", lambda value: value.isoformat(), "fromisoformat"),
}
_MUTABLE = (list, dict, set, bytearray)


class ProgramEnded(BaseException):
    """The program's process is gone; `status` is what the tests' process ends with."""

    def __init__(self, status: int) -> None:
        self.status = status


class Channel:
    """One end of the two pipes: sends requests, answers those that come back meanwhile.

    A request is ["do", operation, arguments, named arguments], its answer ["did", value, changed arguments] or
    ["raised", class names, arguments, attributes, traceback].
    """

    operations: dict[str, Callable[..., Any]]

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.kept: list[Any] = []  # what the other end holds stand-ins of
        self.numbers: dict[int, int] = {}  # places in `kept`, by `id`

    def send(self, message: list) -> None:
        content = json.dumps(message).encode()
        content = memoryview(len(content).to_bytes(LENGTH_BYTES, "little") + content)
        while content:
            content = content[os.write(self.sink, content) :]

    def receive(self) -> Any:
        return json.loads(self.read(int.from_bytes(self.read(LENGTH_BYTES), "little")))

    def read(self, size: int) -> bytearray:
        content = bytearray()
        while len(content) < size:
            self.wait()
            chunk = os.read(self.source, min(size - len(content), 2**16))
            if not chunk:
                self.gone()
            content += chunk
        return content

    def wait(self) -> None:
        """Returns when there is something to read."""

    def gone(self) -> NoReturn:
        os._exit(1)

    def request(self, operation: str, *arguments: Any, **named: Any) -> Any:
        self.send(["do", operation, [*map(self.encode, arguments)], {k: self.encode(v) for k, v in named.items()}])
        while (answer := self.receive())[0] == "do":
            self.answer(answer)
        if answer[0] == "raised":
            self.throw(*answer[1:])
        _, value, changed = answer
        for place, content in changed:
            _replace(arguments[place], self.decode(content))
        if isinstance(value, dict) and "argument" in value:  # the very object, for tests that ask for it
            return arguments[value["argument"]]
        return self.decode(value)

    def answer(self, request: list) -> None:
        _, operation, sent, named = request
        try:
            arguments = [self.decode(each) for each in sent]
            value = self.operations[operation](*arguments, **{k: self.decode(v) for k, v in named.items()})
            changed = []
            for place, (before, argument) in enumerate(zip(sent, arguments, strict=True)):
                if type(argument) in _MUTABLE and (after := self.encode(argument)) != before:
                    changed.append([place, after])
            same = [place for place, argument in enumerate(arguments) if argument is value and type(value) in _MUTABLE]
            reply = ["did", {"argument": same[0]} if same else self.encode(value), changed]
        except MemoryError:
            os._exit(MEMORY_STATUS)
        except ProgramEnded:
            raise
        except BaseException as error:  # SystemExit too: whoever called it decides what that means
            reply = self.raised(error)
        self.send(reply)

    def raised(self, error: BaseException) -> list:
        import traceback  # of programs that raise alone

        error.__traceback__ = without_own_frames(error.__traceback__)
        classes = [each.__name__ for each in type(error).__mro__]
        text = "".join(traceback.format_exception(error))
        return ["raised", classes, self.encode(list(error.args)), self.encode(vars(error)), text]

    def throw(self, classes: list[str], arguments: list, attributes: dict, text: str) -> NoReturn:
        kind = self.exception_class(classes)
        error = kind.__new__(kind)
        error.args = tuple(self.decode(arguments))
        vars(error).update(self.decode(attributes), program_traceback=text)
        raise error

    def exception_class(self, names: Iterable[str]) -> type[BaseException]:
        for name in names:
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, BaseException):
                return kind
        return Exception

    def keep(self, value: Any) -> dict[str, Any]:
        """A stand-in's number for an object that stays here."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.kept)
            self.kept.append(value)
        return {"theirs": self.numbers[id(value)]}

    def encode(self, value: Any) -> Any:
        """The value in JSON; of subclasses of plain types the plain value."""
        match value:
            case None | bool():
                return value
            case str():
                return str.__str__(value)
            case float():
                return float.__float__(value)
            case int():
                # In base 16, which takes less than quadratic time and has no limit.
                return int.__int__(value) if -(2**63) < value < 2**63 else {"int": hex(value)}
            case list():
                return [*map(self.encode, value)]
            case tuple() | set() | frozenset():
                name = next(kind.__name__ for kind in (tuple, set, frozenset) if isinstance(value, kind))
                return {name: [*map(self.encode, value)]}
            case dict():
                return {"dict": [[self.encode(key), self.encode(each)] for key, each in value.items()]}
            case bytes() | bytearray():
                return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
            case complex():
                return {"complex": [value.real, value.imag]}
            case range():
                return {"range": [self.encode(each) for each in (value.start, value.stop, value.step)]}
        kind = type(value)
        if kind.__name__ in _AS_TEXT and kind.__module__ == _AS_TEXT[kind.__name__][0]:
            return {kind.__name__: _AS_TEXT[kind.__name__][1](value)}
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):
            plain = self.encode(value.tolist())
            return {"array": [plain, value.dtype.str]} if kind.__name__ == "ndarray" else plain
        return self.keep(value)

    def decode(self, content: Any) -> Any:
        """The value that `encode` made `content` of.

        Classes are built by name from this table alone: a loader of any others would run what the program asks for.
        """
        if isinstance(content, list):
            return [*map(self.decode, content)]
        if not isinstance(content, dict):
            return content
        ((name, inner),) = content.items()
        match name:
            case "int":
                return int(inner, 16)
            case "tuple" | "set" | "frozenset":
                return getattr(builtins, name)(map(self.decode, inner))
            case "dict":
                return {self.decode(key): self.decode(each) for key, each in inner}
            case "bytes" | "bytearray":
                return getattr(builtins, name).fromhex(inner)
            case "complex" | "range":
                return getattr(builtins, name)(*map(self.decode, inner))
            case "array":
                return importlib.import_module("numpy").array(self.decode(inner[0]), dtype=inner[1])
            case "yours":
                return self.kept[inner]
            case "theirs":
                return self.stand_in(inner)
            case "class":
                return self.exception_class(inner)
        module, _, reader = _AS_TEXT[name]
        kind = getattr(importlib.import_module(module), name)
        return getattr(kind, reader)(inner) if reader else kind(inner)

    def stand_in(self, number: int) -> Any:
        """What stands here for an object of the other end."""
        raise NotImplementedError


def _replace(argument: Any, content: Any) -> None:
    """Puts the content into a mutable argument."""
    if isinstance(argument, list | bytearray):
        argument[:] = content
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(content)


def without_own_frames(place: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback without the frames of this package."""
    if place is None:
        return None
    following = without_own_frames(place.tb_next)
    if place.tb_frame.f_globals.get("__name__", "").startswith("gendistill.sandbox."):
        return following
    return types.TracebackType(following, place.tb_frame, place.tb_lasti, place.tb_lineno)
