import functools
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from gendistill.errors import UserError
from gendistill.sandbox import run as sandbox
from gendistill.sandbox.processes import descendants
from gendistill.sandbox.run import run_many, run_python
from gendistill.sandbox.task import MIB, OUTPUT_BYTES, PROCESSES, Task

SECONDS = 2
PASSES = "assert 1 + 1 == 2"

# Programs that must not pass: (name, source, the reason each must end with).
HOSTILE = [
    ("wrong", "assert 1 + 1 == 3", "failed"),
    ("syntax error", "def f(:", "failed"),
    ("null byte", "x = '\0'", "failed"),
    ("lone surrogate", "assert '\ud800' == 'a'", "failed"),
    ("endless loop", "while True: pass", "timeout"),
    ("sleep", "import time; time.sleep(60)", "timeout"),
    (
        "ignored signals",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)",
        "timeout",
    ),
    ("stopped", "import os; os.kill(os.getpid(), 19)\nwhile True: pass", "timeout"),
    ("fork bomb", "import os\nwhile True: os.fork()", "failed"),
    ("patient fork bomb", "import os\nwhile True:\n try: os.fork()\n except OSError: pass", "timeout"),
    ("runaway forks", "import os\nwhile True:\n if os.fork(): os._exit(0)", "failed"),
    ("10 GB", "x = bytearray(10**10)", "memory"),
    (
        "memory of many processes",
        f"import os, time\nfor _ in range(7):\n if not os.fork():\n  x = bytearray({100 * MIB}); time.sleep(60)\n"
        "time.sleep(60)",
        "memory",
    ),
    ("deep recursion", "def f(): f()\nf()", "failed"),
    ("crash", "import ctypes; ctypes.string_at(0)", "failed"),
    ("big file", "f = open('big', 'wb')\nwhile True: f.write(bytes(10**6))", "failed"),
    ("many open files", "x = [open('file', 'w') for _ in range(10**4)]", "failed"),
    ("connect", "import socket; socket.create_connection(('127.0.0.1', 22), 1)", "failed"),
    ("datagram", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "failed"),
    ("resolve", "import urllib.request; urllib.request.urlopen('http://example.org', timeout=1)", "failed"),
    ("kill parent", "import os; os.kill(os.getppid(), 9)", "failed"),
    ("kill everyone", "import os; os.kill(-1, 9)", "failed"),
    ("kill own group", "import os; os.kill(0, 9)", "failed"),
    ("new namespace", "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0", "failed"),
    ("trace", "import ctypes, os; assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0", "failed"),
    ("endless printing", "while True: print('x' * 1000)", "output"),
    ("endless complaints", "import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
    ("closed stdout", "import sys; sys.stdout.close(); print(1)", "failed"),
    ("closed descriptors", "import os; os.closerange(0, 256)", "failed"),
    ("replaced stdout", "import os; os.dup2(os.open('out', os.O_WRONLY | os.O_CREAT), 1)", "failed"),
    ("deleted folder", "import os, shutil; shutil.rmtree(os.getcwd())", "failed"),
    ("early os._exit", "import os; os._exit(0)\nassert False", "failed"),
    ("early sys.exit", "import sys; sys.exit(0)\nassert False", "failed"),
    ("early quit", "quit()\nassert False", "failed"),
    ("swallowed by a bare except", "try:\n assert False\nexcept BaseException:\n raise SystemExit(0)", "failed"),
    ("new program", "import os; os.execv('/bin/true', ['true'])", "failed"),
    ("child passes", "import os\nif os.fork(): os.wait(); os._exit(0)", "failed"),
    (
        "guessed signal",
        "import os\nfor n in range(3, 64):\n try: os.write(n, b'passed')\n except OSError: pass",
        "failed",
    ),
    (
        "signal read too late",
        "import os\nfor n in range(3, 64):\n try: os.pread(n, 64, 0); os.write(1, b'token')\n except OSError: pass\n"
        "os._exit(0)",
        "failed",
    ),
]
HOSTILE_IDS = [name for name, _, _ in HOSTILE]


@pytest.fixture(autouse=True)
def folders(monkeypatch):
    """Where the folders of programs are made. No process and no folder outlives its run."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # also for the user root drops to
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(descendants(os.getpid()))
    assert not list(folder.iterdir())
    folder.rmdir()


@functools.cache
def other_isolation() -> tuple[str, dict]:
    """The way of isolating this machine does not take by itself, and the Python to try it with.

    Root drops to another user in it, who may not be able to read the Python of these tests.
    """
    python = Path(sys.executable).resolve()
    private = os.getuid() == 0 and not all(parent.stat().st_mode & 0o005 == 0o005 for parent in python.parents)
    settings = {"python": "/usr/bin/python3", "packages": ("/usr",)} if private else {}
    return ("seccomp" if sandbox.check_isolation() == "namespaces" else "namespaces"), settings


def run_otherwise(code: str, **limits):
    isolation, settings = other_isolation()
    return sandbox.run_task(Task(code, "", limits.get("seconds", SECONDS), 512 * MIB, isolation, **settings))


@pytest.fixture
def otherwise():
    try:
        run_otherwise("")
    except UserError as refusal:
        pytest.skip(f"only {sandbox.check_isolation()} is possible here: {refusal}")
    return run_otherwise


def test_a_program_passes_and_says_what_it_said():
    outcome = run_python("import sys\nprint('γειά', input())\nprint('!', file=sys.stderr)", stdin="σου\n")
    assert outcome == (True, "passed", "γειά σου\n", "!\n")


@pytest.mark.parametrize(
    "code",
    [
        "",
        "if __name__ == '__main__':\n print(1)",
        "open('notes.txt', 'w').write('x'); assert open('notes.txt').read() == 'x'",
        "import tempfile; tempfile.TemporaryFile().write(b'x')",
        "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'pass'], check=True)",
        "import threading; t = threading.Thread(target=print); t.start(); t.join()",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): print(1)",
        "import dataclasses, pickle\n@dataclasses.dataclass\nclass A: x: int\n"
        "assert pickle.loads(pickle.dumps(A(1))) == A(1)",
        "import inspect\ndef f(): return 1\nassert 'return 1' in inspect.getsource(f)",
        "import numpy; assert numpy.arange(3).sum() == 3",
        "x = bytearray(100 * 2**20)",
        "import os; assert not {'PATH', 'USER', 'HF_TOKEN'} & set(os.environ)",
    ],
)
def test_ordinary_programs_pass(code):
    assert run_python(code) == (True, "passed", "1\n" if "main" in code else "\n" if "target=print" in code else "", "")


def test_processes_of_a_program_may_work_together():
    code = "import multiprocessing\nwith multiprocessing.Pool(2) as pool: print(pool.map(abs, [1, -2]))"
    outcome = run_python(code)
    if sandbox.check_isolation() == "namespaces":
        assert outcome == (True, "passed", "[1, 2]\n", "")
    else:
        assert not outcome.ok  # no shared memory there


@pytest.mark.parametrize(("name", "code", "reason"), HOSTILE, ids=HOSTILE_IDS)
def test_hostile_programs_fail_within_their_limits(name, code, reason):
    start = time.monotonic()
    outcome = run_python(code, seconds=SECONDS)
    assert (outcome.ok, outcome.reason) == (False, reason)
    assert time.monotonic() - start < SECONDS + 3
    assert max(len(outcome.output), len(outcome.error)) <= OUTPUT_BYTES


def test_hostile_programs_fail_in_the_other_isolation_too(otherwise):
    quick = [(name, code, reason) for name, code, reason in HOSTILE if reason != "timeout"]
    ends = {name: otherwise(code).reason for name, code, _ in quick}
    assert ends == {name: reason for name, _, reason in quick}
    assert otherwise("while True: pass", seconds=0.5).reason == "timeout"
    assert otherwise("print(1)") == (True, "passed", "1\n", "")


def test_the_error_shows_the_program_alone():
    error = run_python("x = 1\nassert x == 2, 'no'").error
    assert error.splitlines()[1:3] == ['  File "program.py", line 2, in <module>', "    assert x == 2, 'no'"]
    assert error.splitlines()[-1] == "AssertionError: no"


def escaping(victim: Path) -> list[str]:
    return [
        f"open({str(victim)!r}, 'w').write('changed')",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"import os; os.chmod({str(victim)!r}, 0)",
        f"import os; os.unlink({str(victim)!r})",
        f"open({str(victim)!r}).read()",
        f"open({str(victim.with_name('new'))!r}, 'w')",
        "import sys; open(sys.prefix + '/new', 'w')",
    ]


@pytest.fixture
def victim():
    """A file that every user of this machine may read and write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    file = folder / "victim.txt"
    file.write_text("untouched")
    file.chmod(0o666)
    yield file
    assert [file.read_text(), [*folder.iterdir()], file.stat().st_mode & 0o777] == ["untouched", [file], 0o666]
    shutil.rmtree(folder)


def test_the_users_files_are_out_of_reach(victim):
    assert [run_python(code).reason for code in escaping(victim)] == ["failed"] * 7


def test_the_users_files_are_out_of_reach_in_the_other_isolation_too(victim, otherwise):
    assert [otherwise(code).reason for code in escaping(victim)] == ["failed"] * 7


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        time.sleep(60)
    os._exit(0)
os.wait()
"""


def test_daemons_do_not_outlive_their_program(otherwise):
    for run in (run_python, otherwise):  # the fixture `folders` looks for them
        start = time.monotonic()
        assert run(DAEMON).ok
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("isolation", ["own", "other"])
def test_a_killed_caller_takes_its_programs_along(isolation, otherwise, folders):
    way, settings = (sandbox.check_isolation(), {}) if isolation == "own" else other_isolation()
    task = Task("import time\ntime.sleep(60)", "", 60, 512 * MIB, way, **settings)
    script = f"import tempfile; tempfile.tempdir = {str(folders)!r}\n"
    script += "from gendistill.sandbox.run import run_task; from gendistill.sandbox.task import Task\n"
    script += f"print(flush=True); run_task(Task(*{tuple(task)!r}))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as caller:
        caller.stdout.readline()
        time.sleep(0.5)
        family = list(descendants(caller.pid))
        assert len(family) >= 2  # the supervisor and the program at least
        caller.kill()
    deadline = time.monotonic() + 5
    while living := [process for process in family if Path(f"/proc/{process}").exists()]:
        assert time.monotonic() < deadline, living
        time.sleep(0.05)
    for folder in folders.iterdir():  # nobody is left to remove it
        shutil.rmtree(folder)


def test_limits_on_processes_are_a_programs_own():
    code = f"""
import os, time
for _ in range({PROCESSES // 2}):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
time.sleep(0.5)
"""
    assert [outcome.ok for outcome in run_many([code] * 4, workers=4)] == [True] * 4


def test_many_programs_get_their_own_verdicts():
    kinds = [
        (PASSES, "passed"),
        ("assert False", "failed"),
        ("import os; os._exit(0)", "failed"),
        ("print(7)", "passed"),
    ]
    codes, reasons = zip(*kinds * 8, strict=True)
    outcomes = run_many(codes, workers=4)
    assert tuple(outcome.reason for outcome in outcomes) == reasons
    assert [outcome.output for outcome in outcomes[3::4]] == ["7\n"] * 8
    assert run_many([]) == []


def test_an_ordinary_user_is_isolated_as_well():
    """Neither way needs privileges; run as another user, with a Python that user can read."""
    if os.getuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    folder = Path(tempfile.mkdtemp())
    try:
        package = folder / "gendistill"
        package.mkdir()
        source = Path(sandbox.__file__).parents[1]
        for name in ("__init__", "errors"):
            shutil.copy(source / f"{name}.py", package)
        shutil.copytree(source / "sandbox", package / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "victim").write_text("untouched")
        script = textwrap.dedent(f"""
            import sys
            sys.path.insert(0, {str(folder)!r})
            from gendistill.errors import UserError
            from gendistill.sandbox.run import run_task
            from gendistill.sandbox.task import Task
            programs = ["print(1)", "open({str(folder / "victim")!r}, 'a')", "import os; os.kill(os.getppid(), 9)",
                        "import os; os.kill({os.getpid()}, 0)", "import os; os.kill(-1, 9)", "import os; os._exit(0)",
                        "import socket; socket.socket()", "import os\\nwhile True: os.fork()", "x = bytearray(10**10)"]
            for isolation in ("namespaces", "seccomp"):
                try:
                    tasks = [Task(code, "", 5, 2**29, isolation) for code in programs]
                    print(isolation, *[run_task(task).reason for task in tasks])
                except UserError as refusal:
                    print(isolation, "refused:", refusal)
        """)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 12345, 12345)
        done = subprocess.run(
            ["/usr/bin/python3", "-B", "-c", script], user=12345, group=12345, extra_groups=[], cwd="/",
            capture_output=True, text=True,
        )  # fmt: skip
        verdicts = " ".join(["passed", *["failed"] * 7, "memory"])
        allowed = [line for line in done.stdout.splitlines() if "refused" not in line]
        assert allowed, done.stdout + done.stderr
        assert {line.split(" ", 1)[1] for line in allowed} == {verdicts}
        assert (folder / "victim").read_text() == "untouched"
    finally:
        shutil.rmtree(folder)


def test_without_isolation_nothing_runs(monkeypatch):
    def refuse(task):
        raise UserError("not permitted")

    monkeypatch.setattr(sandbox, "run_task", refuse)
    sandbox.check_isolation.cache_clear()
    with pytest.raises(
        UserError, match="cannot be isolated.*namespaces: not permitted; seccomp: not permitted.*Needed is"
    ):
        run_many([PASSES])
    sandbox.check_isolation.cache_clear()


def test_a_refused_setup_says_which_call_failed():
    task = Task(PASSES, "", SECONDS, 512 * MIB, sandbox.check_isolation(), python="/nowhere/python")
    with pytest.raises((UserError, FileNotFoundError), match="/nowhere/python"):
        sandbox.run_task(task)


def test_an_unknown_isolation_runs_nothing():
    with pytest.raises(ValueError, match="unknown isolation 'none'; known: namespaces, seccomp"):
        sandbox.run_task(Task(PASSES, "", SECONDS, 512 * MIB, "none"))
