import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gendistill.sandbox import run as sandbox
from gendistill.sandbox.task import MIB, OUTPUT_BYTES
from sandbox.hostile import ALL_ESCAPES, ESCAPES, FORGING, RESOURCES, TESTS

MEMORY = 128 * MIB
LONGEST = 20  # seconds; the machine may be busy
OTHER_USER = 12345
SETUPS = [(isolation, user) for isolation in ("namespaces", "seccomp") for user in ("root", "ordinary user")]
RIGHT = "def add(a, b): return a + b"


@pytest.fixture(scope="module")
def outside():
    """What programs must not reach, by the names that their sources have for it; looked at afterwards."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    victim = folder / "victim.txt"
    victim.write_text("untouched")
    victim.chmod(0o666)
    abstract = f"\0gendistill-{os.getpid()}"
    sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    for each, name in zip(sockets, (str(folder / "socket"), abstract), strict=True):
        each.bind(name)
        each.setblocking(False)
    (folder / "socket").chmod(0o777)
    user = {"user": OTHER_USER, "group": OTHER_USER, "extra_groups": []} if os.getuid() == 0 else {}
    with subprocess.Popen(["sleep", "600"], **user) as process:  # of the user the programs run as
        yield {
            "victim": str(victim), "socket": str(folder / "socket"), "abstract": abstract, "process": process.pid,
        }  # fmt: skip
        assert process.poll() is None
        process.kill()
    assert [victim.read_text(), victim.stat().st_mode & 0o777] == ["untouched", 0o666]
    assert sorted(path.name for path in folder.iterdir()) == ["socket", "victim.txt"]
    for each in sockets:
        with pytest.raises(BlockingIOError):
            each.recv(1)
        each.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def package():
    """The sandbox where every user may read it."""
    folder = Path(tempfile.mkdtemp())
    source = Path(sandbox.__file__).parents[1]
    (folder / "gendistill").mkdir()
    for name in ("__init__", "errors"):
        shutil.copy(source / f"{name}.py", folder / "gendistill")
    shutil.copytree(
        source / "sandbox", folder / "gendistill/sandbox", ignore=shutil.ignore_patterns("__pycache__")
    )  # fmt: skip
    shutil.copy(Path(__file__).with_name("setups.py"), folder)
    subprocess.run([system_python(), "-m", "compileall", "-q", folder], check=True)  # or every supervisor would
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def programs(outside: dict) -> list[dict]:
    right = ("right", RIGHT, TESTS, ("passed",), LONGEST)
    forging = [(name, code, TESTS, ("failed", "memory", "timeout"), 2) for name, code in FORGING]
    resources = [
        (name, code, "", reasons, 0.5 if "timeout" in reasons else LONGEST) for name, code, reasons in RESOURCES
    ]
    sources = [(name, code.format(**outside)) for name, code in ESCAPES]
    escapes = [("escapes", f"ESCAPES = {sources!r}\n{ALL_ESCAPES}", "", ("passed",), LONGEST)]
    keys = ("name", "code", "tests", "reasons", "seconds")
    # Those that wait for their time first, so that the others run meanwhile.
    rows = sorted([*escapes, right, *resources, *forging], key=lambda row: "timeout" not in row[3])
    return [dict(zip(keys, row, strict=True)) for row in rows]


@functools.cache
def system_python() -> str:
    """A Python that another user may read, if root runs these tests."""
    return "/usr/bin/python3" if os.getuid() == 0 else sys.executable


def run_all(isolation: str, user: str, package: Path, given: list[dict]) -> list[list] | str:
    if (user == "root") != (os.getuid() == 0) and os.getuid() != 0:
        return "these tests run as an ordinary user"
    folder = Path(tempfile.mkdtemp())
    identity = {}
    if user != "root" and os.getuid() == 0:
        os.chown(folder, OTHER_USER, OTHER_USER)
        identity = {"user": OTHER_USER, "group": OTHER_USER, "extra_groups": []}
    folder.chmod(0o755)
    done = subprocess.run(
        [system_python(), package / "setups.py", isolation, str(MEMORY), folder],
        input=json.dumps(given), capture_output=True, text=True, cwd="/", env={"SECRET": "x"}, **identity,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())  # not even a deep folder
    folder.rmdir()
    return json.loads(done.stdout)


def contained(given: list[dict], outcomes: list[list], shared_limit: bool) -> dict[str, bool]:
    """By name, whether a program ended as it must; escapes one by one."""
    ends = {}
    for program, (_, reason, output, error) in zip(given, outcomes, strict=True):
        # Where a user runs several programs, they count towards one limit on processes: forks fail the sooner.
        starved = shared_limit and reason == "failed" and program["reasons"] != ("passed",)
        ends[program["name"]] = starved or reason in program["reasons"]
        assert len(output) <= OUTPUT_BYTES and len(error) <= OUTPUT_BYTES
        if program["name"] == "escapes":
            worked = json.loads(output) if output else [name for name, _ in ESCAPES]
            ends |= {f"escape: {name}": name not in worked for name, _ in ESCAPES}
    return ends


@pytest.mark.parametrize(("isolation", "user"), SETUPS)
def test_hostile_programs_are_contained(isolation, user, outside, package, record_property):
    given = programs(outside)
    outcomes = run_all(isolation, user, package, given)
    if isinstance(outcomes, str):
        pytest.skip(outcomes)
    ends = contained(given, outcomes, (isolation, user) == ("seccomp", "ordinary user"))
    assert len(ends) > 100
    record_property("contained", json.dumps(ends))  # for benchmarks/hostile_programs.py
    rows = {program["name"]: outcome for program, outcome in zip(given, outcomes, strict=True)}
    assert {name: rows.get(name) for name, ok in ends.items() if not ok} == {}
