"""What runs in isolation: a program in one process, its tests in another, and values passed between them.

The supervisor executes this module's code in a fresh Python, which imports nothing else of the package. It forks
before it reads either source: the child becomes the program, the parent runs the tests. The tests see the program's
names as stand-ins, and a call of one is a message through a pipe. Plain values (numbers, texts, lists, sets,
dictionaries, arrays and the like) are copied, and what a call changes in its arguments is copied back. Any other
object stays where it is: the tests hold a `Remote` of it, which equals no plain value whatever its class says. So
what the tests compare is computed where the program has no hand in it, and the tests' process alone says that they
passed, by how it ends.

The program decides what its own functions return and what its own objects do; comparing two of its objects is asking
it. Without tests there is nobody to ask: then the program itself says that its last line was reached.
"""

import builtins
import importlib
import os
import re
import resource
import signal
import sys
import types
from typing import Any, NoReturn

from gendistill.sandbox.channel import ProgramEnded, without_own_frames
from gendistill.sandbox.sides import Program, Tests
from gendistill.sandbox.task import MEMORY_STATUS, PASSED_STATUS, PROCESSES

_SET_DEATH_SIGNAL, _SET_DUMPABLE = 1, 4  # options of prctl


def main(tests: int, hidden: bool, mortal: bool) -> None:
    """Runs program.py, and the tests that the descriptor `tests` holds.

    Args:
        hidden: /proc is within the program's reach, so that this process closes its memory there.
        mortal: no namespace ends the program when this process has been killed, so the program asks for it.
    """
    if hidden or mortal:
        import ctypes  # takes its time, and other set-ups do without

        control = ctypes.CDLL(None).prctl
    if hidden:
        control(_SET_DUMPABLE, 0, 0, 0, 0)
    to_program, to_tests = os.pipe(), os.pipe()
    token = os.urandom(16).hex()
    child = os.fork()
    # Not before: processes that this user has already would count against this fork.
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    if child == 0:
        if mortal:
            control(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        for descriptor in (tests, to_program[1], to_tests[0]):
            os.close(descriptor)
        _run_program(Program(to_program[0], to_tests[1]), token)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exception that the program could send the tests
    os.close(to_program[0])
    os.close(to_tests[1])
    os._exit(_run_tests(Tests(to_tests[0], to_program[1], child), tests, token))


def _run_program(channel: Program, token: str) -> NoReturn:
    # Bound here, or the program could put its own in their place. A fork of the program that reaches its last line,
    # or streams put in place of its own, are no proof.
    leave, process, same = os._exit, os.getpid, os.path.samestat
    me, streams = process(), [os.fstat(1), os.fstat(2)]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    channel.module = module
    sys.argv[:] = ["program.py"]
    try:
        with open("program.py", encoding="utf-8", newline="") as file:
            source = file.read()
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        sys.__stdout__.flush()
        sys.__stderr__.flush()
        if not same(streams[0], os.fstat(1)) or not same(streams[1], os.fstat(2)):
            raise OSError("the program replaced its standard streams")
        os.getcwd()
    except MemoryError:
        leave(MEMORY_STATUS)
    except SystemExit:
        leave(1)
    except BaseException as error:
        _show(error)
        leave(1)
    else:  # reached by no other way
        if process() == me:
            channel.send(["loaded", token])
            channel.serve()
        leave(0)
    raise SystemError  # `leave` never returns


def _run_tests(channel: Tests, descriptor: int, token: str) -> int:
    """The exit status of this process."""
    source = ""
    try:
        if channel.receive() != ["loaded", token]:
            return 1
        with open(descriptor, encoding="utf-8", newline="") as file:
            source = file.read()  # after the fork: the program must not know what is expected of it
        if source:
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            code = compile(source, "tests.py", "exec", dont_inherit=True)
            module.__dict__.update(_names_for(channel, code, source))
            exec(code, module.__dict__)
            sys.stdout.flush()
    except MemoryError:
        return MEMORY_STATUS
    except ProgramEnded as ended:
        return ended.status
    except BaseException as error:
        _show(error, source)
        return 1
    else:
        return PASSED_STATUS


def _names_for(channel: Tests, code: types.CodeType, source: str) -> dict[str, Any]:
    """What the program defines, by the names that the tests use."""
    names = _names_in(code) & set(channel.request("names"))
    # The tests' own abs or len, unless it is one of these that they test.
    others = names - set(dir(builtins))
    names = others or names
    # Tests that count on a module that the program imports get the real one.
    modules = {name for name in names & sys.stdlib_module_names if re.search(rf"\b{name}\s*\.", source)}
    own = {name: importlib.import_module(name) for name in modules}
    return {name: channel.request("take", name) for name in sorted(names - modules)} | own


def _names_in(code: types.CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


def _show(error: BaseException, tests: str = "") -> None:
    """Prints a traceback without the lines of this package; what the program raised in its own process goes first."""
    import linecache  # these take their time, and most programs are right
    import traceback

    linecache.cache["tests.py"] = (len(tests), None, tests.splitlines(keepends=True), "tests.py")  # there is no file
    sys.stderr.write(getattr(error, "program_traceback", ""))
    traceback.print_exception(error.with_traceback(without_own_frames(error.__traceback__)))
