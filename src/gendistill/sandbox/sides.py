"""The two ends of a run: the program with its objects, and the tests with stand-ins of them."""

import builtins
import operator
import os
import select
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from gendistill.sandbox.channel import Channel, ProgramEnded
from gendistill.sandbox.task import MEMORY_STATUS


def _call(function: Callable, *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


class Program(Channel):
    """The program's end: does with its objects whatever the tests ask for."""

    module: types.ModuleType

    def __init__(self, source: int, sink: int) -> None:
        super().__init__(source, sink)
        self.operations = {
            "names": lambda: [name for name in vars(self.module) if type(name) is str and name[:2] != "__"],
            "take": lambda name: vars(self.module)[name],
            "call": _call,
            "get": getattr,
            "set": setattr,
            "item": operator.getitem,
            "same": operator.eq,
            "is_a": isinstance,
            **{function.__name__: function for function in (bool, iter, len, next, repr, str)},
        }

    def serve(self) -> NoReturn:
        while True:
            self.answer(self.receive())

    def encode(self, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"class": [kind.__name__ for kind in value.__mro__]}
        if isinstance(value, types.FunctionType) and hasattr(value, "stands_for"):
            return {"yours": value.stands_for}
        return super().encode(value)

    def decode(self, content: Any) -> Any:
        if isinstance(content, dict) and "builtin" in content:
            return getattr(builtins, content["builtin"])
        return super().decode(content)

    def stand_in(self, number: int) -> Callable:
        """A function that calls the tests'."""

        def call(*arguments: Any, **named: Any) -> Any:
            return self.request("call", call, *arguments, **named)

        call.stands_for = number
        return call


class Tests(Channel):
    """The tests' end: the program may call the functions that it was given, and ask for nothing else."""

    operations = {"call": _call}

    def __init__(self, source: int, sink: int, program: int) -> None:
        super().__init__(source, sink)
        self.program = program
        self.remotes: dict[int, Remote] = {}
        self.own_exceptions: dict[str, type[BaseException]] = {}
        self.poll = select.poll()
        # The program's end too: its children may hold its pipes open when it is gone.
        for descriptor in (source, os.pidfd_open(program)):
            self.poll.register(descriptor, select.POLLIN)

    def wait(self) -> None:
        if self.source not in dict(self.poll.poll()):
            self.gone()

    def send(self, message: list) -> None:
        try:
            super().send(message)
        except BrokenPipeError:
            self.gone()

    def gone(self) -> NoReturn:
        code = os.waitstatus_to_exitcode(os.waitpid(self.program, 0)[1])
        raise ProgramEnded(MEMORY_STATUS if code == MEMORY_STATUS else 128 - code if code < 0 else 1)

    def exception_class(self, names: Iterable[str]) -> type[BaseException]:
        """A class of these names, from the most derived on; the program's own are made here, without what they do."""
        name, *bases = names
        known = super().exception_class([name])
        if known.__name__ == name:
            return known
        if name not in self.own_exceptions:
            self.own_exceptions[name] = type(name, (self.exception_class(bases),), {"__module__": "__main__"})
        return self.own_exceptions[name]

    def encode(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"yours": object.__getattribute__(value, "__number__")}
        if isinstance(value, type | types.BuiltinFunctionType) and getattr(builtins, value.__name__, None) is value:
            return {"builtin": value.__name__}
        return super().encode(value)

    def keep(self, value: Any) -> dict[str, Any]:
        if not callable(value):
            raise TypeError(f"the tests pass a {type(value).__name__}, which cannot leave their process")
        return super().keep(value)

    def stand_in(self, number: int) -> "Remote":
        if number not in self.remotes:
            self.remotes[number] = Remote(self, number)
        return self.remotes[number]


class Remote:
    """Stands in the tests for an object of the program.

    No arithmetic and no order: of numbers that the program makes up, a difference of 0 would be the program's word.
    """

    def __init__(self, channel: Tests, number: int) -> None:
        # Names that no program gives what it wants tested.
        object.__setattr__(self, "__number__", number)
        object.__setattr__(
            self, "__ask__", lambda operation, *rest, **named: channel.request(operation, *rest, **named)
        )

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__" and name not in ("__name__", "__doc__"):
            raise AttributeError(name)  # what libraries look for to have an object do their work
        return _ask(self)("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self)("set", self, name, value)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        # An object of the program that equals everything is no right answer.
        return isinstance(other, Remote) and _ask(self)("same", self, other) is True

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        try:
            return _ask(self)("call", self, *arguments, **named)
        except StopIteration as error:  # `all(map(...))` would take it for the end of what it checks
            raise RuntimeError("the program raised StopIteration") from error

    def __getitem__(self, key: Any) -> Any:
        return _ask(self)("item", self, key)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and _ask(self)("is_a", value, self) is True

    def __len__(self) -> int:
        return _ask(self)("len", self)

    def __bool__(self) -> bool:
        return _ask(self)("bool", self)

    def __str__(self) -> str:
        return _ask(self)("str", self)

    def __repr__(self) -> str:
        return _ask(self)("repr", self)

    def __iter__(self) -> Any:
        return iter(made) if not isinstance(made := _ask(self)("iter", self), Remote) else made

    def __next__(self) -> Any:
        return _ask(self)("next", self)


def _ask(remote: Remote) -> Callable[..., Any]:
    return object.__getattribute__(remote, "__ask__")
