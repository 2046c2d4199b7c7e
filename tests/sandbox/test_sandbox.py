import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from gendistill.errors import UserError
from gendistill.sandbox import run as sandbox
from gendistill.sandbox.folders import clear_left_behind, program_folder
from gendistill.sandbox.processes import descendants
from gendistill.sandbox.run import run_many, run_python
from gendistill.sandbox.task import MIB, PROCESSES, Task

SECONDS = 2
PASSES = "assert 1 + 1 == 2"

# Programs without tests that must not pass; tests/sandbox/hostile.py has those that mean harm.
FAILING = [
    "assert 1 + 1 == 3",
    "def f(:",
    "x = '\0'",
    "assert '\ud800' == 'a'",
    "import sys; sys.stdout.close(); print(1)",
    "import os; os.closerange(0, 256)",
    "import os; os.dup2(os.open('out', os.O_WRONLY | os.O_CREAT), 1)",
    "import os, shutil; shutil.rmtree(os.getcwd())",
    "import os; os._exit(0)\nassert False",
    "import os; os._exit = print\nassert False",
    "import os; os._exit = print\nos.write = os.read\nraise MemoryError",
    "import os; os.getpid = lambda: 1\nassert False",
    "import sys; sys.exit(0)\nassert False",
    "quit()\nassert False",
    "try:\n assert False\nexcept BaseException:\n raise SystemExit(0)",
    "import os; os.execv('/bin/true', ['true'])",
    "import os\nif os.fork(): os.wait(); os._exit(0)",
    "import os\nfor n in range(3, 64):\n try: os.write(n, b'passed')\n except OSError: pass\nos._exit(0)",
    "import os\nfor n in range(3, 64):\n try: os.write(n, (8).to_bytes(8, 'little') + b'[\"loaded\"]')\n"
    " except OSError: pass\nos._exit(0)",
]


@pytest.fixture(autouse=True)
def folders(monkeypatch):
    """Where the folders of programs are made. No process and no folder outlives its run."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # also for the user root drops to
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = set(descendants(os.getpid()))  # other files' tests may have left a server of forks
    yield folder
    assert not set(descendants(os.getpid())) - before
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


def test_failing_programs_fail():
    outcomes = run_many(FAILING, seconds=20)
    assert [code for code, outcome in zip(FAILING, outcomes, strict=True) if outcome.ok] == []
    assert {outcome.reason for outcome in outcomes} <= {"failed", "memory"}


def test_the_error_shows_the_program_alone():
    error = run_python("x = 1\nassert x == 2, 'no'").error
    assert error.splitlines()[1:3] == ['  File "program.py", line 2, in <module>', "    assert x == 2, 'no'"]
    assert error.splitlines()[-1] == "AssertionError: no"


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
    assert len(list(folders.iterdir())) == 1  # nobody is left to remove it
    assert run_python("").ok  # but whoever comes next


def test_a_folder_in_use_stays(folders):
    with program_folder() as used, program_folder():
        clear_left_behind()
        assert os.path.exists(used)


def test_deep_folders_and_what_no_path_reaches_are_removed(folders):
    with program_folder() as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        for depth in range(1005):  # deeper than Python recurses, and than a path is long
            os.mkdir("deep", 0o700, dir_fd=descriptor)
            below = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
            if depth % 400 == 0:
                os.symlink("/", "link", dir_fd=descriptor)
        os.close(descriptor)
    assert not list(folders.iterdir())


def test_shared_pages_count_once(otherwise):
    """A page that a process has and another inherits is one; so are pages that both map."""
    code = "import mmap, os, time\nx = bytearray(b'1') * (150 << 20)\nm = mmap.mmap(-1, 100 << 20)\n"
    code += "m.write(b'1' * (100 << 20))\nfor _ in range(4):\n if not os.fork(): time.sleep(0.5); os._exit(0)\n"
    code += "for _ in range(4): os.wait()"
    assert [run(code, seconds=20).reason for run in (run_python, otherwise)] == ["passed"] * 2


ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
print("orphaned", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("isolation", ["own", "other"])
def test_what_a_killed_caller_and_supervisor_leave_ends_at_the_next_start(isolation, otherwise, folders):
    way, settings = (sandbox.check_isolation(), {}) if isolation == "own" else other_isolation()
    task = Task(ORPHAN, "", 600, 512 * MIB, way, **settings)
    script = f"import tempfile; tempfile.tempdir = {str(folders)!r}\n"
    script += "from gendistill.sandbox.run import run_task; from gendistill.sandbox.task import Task\n"
    script += f"run_task(Task(*{tuple(task)!r}))"
    with subprocess.Popen([sys.executable, "-c", script]) as caller:
        deadline = time.monotonic() + 20
        # The orphan has come to the supervisor, or to the first process of its namespace.
        while len(family := list(descendants(caller.pid))) < (4 if way == "seccomp" else 5):
            assert time.monotonic() < deadline, family
            time.sleep(0.05)
        for process in (caller.pid, family[0]):
            os.kill(process, signal.SIGKILL)
    assert run_python("").ok
    while living := [process for process in family if Path(f"/proc/{process}").exists()]:
        assert time.monotonic() < deadline, living
        time.sleep(0.05)


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
