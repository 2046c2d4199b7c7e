"""Runs programs a model wrote, with nothing of the machine within their reach.

A supervisor, a small Python process of its own, starts each program, watches it and ends it with all its descendants.
It isolates in one of two ways, the first that this machine allows:

- "namespaces": the program sees a root of its own (Python and the system's libraries read-only, an empty /tmp in
  memory), no network and no other process. Root drops to an unused user besides; other users need user namespaces.
- "seccomp": where containers refuse namespaces. Root drops to an unused user; any other user is kept from files by
  Landlock and from signalling by the system call filter. The program's folder is on disk, without a quota.

In both ways a filter refuses sockets and the system calls by which programs reach into others, and limits bound CPU
time, memory, processes, open files and file sizes.
"""

import ctypes
import errno
import functools
import json
import math
import mmap
import os
import platform
import resource
import secrets
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from gendistill.errors import UserError

Isolation = Literal["namespaces", "seccomp"]

MIB = 2**20
OUTPUT_BYTES = 2**18
FILE_BYTES = 16 * MIB
FOLDER_BYTES = 64 * MIB
OPEN_FILES = 64
PROCESSES = 32

_POLL_SECONDS = 0.02
_GRACE_SECONDS = 30
_SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /nix/store /etc/ld.so.cache /etc/alternatives".split()
_DEVICES = "/dev/null /dev/zero /dev/random /dev/urandom".split()


class Outcome(NamedTuple):
    """What became of a program: what it printed is cut at `OUTPUT_BYTES` bytes a stream."""

    ok: bool
    reason: Literal["passed", "failed", "timeout", "memory", "output"]
    output: str
    error: str


def run_python(code: str, *, seconds: float = 5, memory: int = 512 * MIB, stdin: str = "") -> Outcome:
    """Runs a Python program in isolation; it passes if its last line is reached without an exception.

    A program that exits before its last line fails, whatever its exit status; so does one that closes its standard
    streams or deletes its folder. The proof of having passed is a random token that the program never sees unless it
    searches the interpreter's frames for it.

    Args:
        code: the source, run as `__main__` by this Python with its installed packages, in an empty folder.
        seconds: wall time, the start of the interpreter included.
        memory: bytes of address space a process, and of resident memory over all the program's processes.
        stdin: what standard input holds.

    Raises:
        UserError: this machine offers no isolation; the program has not been run.
    """
    return _run(_Task(code, stdin, seconds, memory, check_isolation()))


def run_many(
    codes: Iterable[str], *, workers: int | None = None, seconds: float = 5, memory: int = 512 * MIB
) -> list[Outcome]:
    """Outcomes of many programs, in order, `workers` at a time (default: one a usable core).

    More workers than cores make programs wait for each other, and the wall time of each resumes meanwhile.
    """
    check_isolation()  # once, not in every thread
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(functools.partial(run_python, seconds=seconds, memory=memory), codes))


class _Task(NamedTuple):
    code: str
    stdin: str
    seconds: float
    memory: int
    isolation: Isolation
    # A Python started as "../.venv/bin/python" has that in its paths, and what ".." begins at is not there inside.
    python: str = os.path.abspath(sys.executable)
    packages: tuple[str, ...] = (os.path.abspath(sys.prefix), os.path.abspath(sys.base_prefix))


@functools.cache
def check_isolation() -> Isolation:
    """The first way of isolating in which an empty program passes.

    Raises:
        UserError: there is none on this machine.
    """
    refusals = []
    for isolation in ("namespaces", "seccomp"):
        try:
            outcome = _run(_Task("", "", 20, 512 * MIB, isolation))
        except UserError as refusal:
            refusals.append(f"{isolation}: {refusal}")
        else:
            if outcome.ok:
                return isolation
            refusals.append(f"{isolation}: an empty program ended as {outcome.reason}. {outcome.error.strip()}")
    raise UserError(
        f"Programs written by a model cannot be isolated on this machine, so none is run ({'; '.join(refusals)}). "
        "Needed is Linux on x86-64 or aarch64 with one of: namespaces (a container with the capability SYS_ADMIN, or "
        "user namespaces allowed); Landlock (Linux 6.2 or newer); or to be root, with a Python outside root's home."
    )


def _run(task: _Task) -> Outcome:
    if sys.platform != "linux":
        raise UserError(f"Programs can be isolated on Linux only, and this is {sys.platform}.")
    folder = tempfile.mkdtemp(prefix="gendistill-program-")
    try:
        reply = _ask_supervisor(task, folder)
    finally:
        with suppress(RecursionError):  # folders nested by the thousand; then a rest stays
            shutil.rmtree(folder, ignore_errors=True)
    if "refusal" in reply:
        raise UserError(reply["refusal"])
    return Outcome(reply["reason"] == "passed", **reply)


def _ask_supervisor(task: _Task, folder: str) -> dict[str, str]:
    source = str(Path(__file__).parents[1])
    start = f"import sys; sys.path.insert(0, {source!r}); from gendistill.sandbox import _supervise; _supervise()"
    # The supervisor ends everything when its standard input closes: also if this process is killed.
    with subprocess.Popen(
        [task.python, "-I", "-S", "-c", start],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=folder,
        start_new_session=True,
    ) as supervisor:
        guard = threading.Timer(task.seconds + _GRACE_SECONDS, supervisor.kill)
        guard.start()
        try:
            with suppress(BrokenPipeError):
                supervisor.stdin.write(json.dumps(task).encode() + b"\n")
                supervisor.stdin.flush()
            reply = supervisor.stdout.read()
        finally:
            guard.cancel()
    return json.loads(reply or '{"reason": "failed", "output": "", "error": "The supervisor was killed."}')


# The supervisor: a process of its own, between this one and the program.


def _supervise() -> None:
    """Reads a task, answers with an outcome or a refusal."""
    task = _Task(*json.loads(sys.stdin.buffer.readline()))
    try:
        reply = _watch(task)
    except OSError as error:
        reply = {"refusal": str(error)}
    sys.stdout.write(json.dumps(reply))


def _watch(task: _Task) -> dict[str, str]:
    token = secrets.token_hex(16).encode()
    user = _unused_user() if os.getuid() == 0 else None
    Path(f"/proc/self/task/{os.getpid()}/children").read_text()  # without it no descendant would be found
    # Orphans come to this process, so that those that have left their parents and sessions are found at the end.
    _libc("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if task.isolation == "namespaces":
        _unshare_processes()
    pipes = {name: os.pipe() for name in ("refusal", "output", "error", "verdict")}
    child = os.fork()
    if child == 0:
        _be_child(task, token, {name: write for name, (_, write) in pipes.items()}, user)
    for _, write in pipes.values():
        os.close(write)
    streams = {name: read for name, (read, _) in pipes.items()}
    try:
        with open(streams.pop("refusal")) as refusal:  # closes when the program starts
            if message := refusal.read():
                raise OSError(message)
        reason, texts = _follow(task, child, streams)
    finally:
        _end_descendants()
    for name, stream in streams.items():
        texts[name] += _rest(stream)
    if max(len(texts["output"]), len(texts["error"])) > OUTPUT_BYTES:
        reason = "output"
    elif reason == "failed" and texts["verdict"] == token:
        reason = "passed"
    output, error = (texts[name][:OUTPUT_BYTES].decode(errors="replace") for name in ("output", "error"))
    return {"reason": reason, "output": output, "error": error}


def _follow(task: _Task, child: int, streams: dict[str, int]) -> tuple[str, dict[str, bytearray]]:
    """Reads what a program says until it ends or passes a limit; a program that ends by itself has "failed" so far."""
    deadline = time.monotonic() + task.seconds
    texts = {name: bytearray() for name in streams}
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        for name, stream in streams.items():
            os.set_blocking(stream, False)
            selector.register(stream, selectors.EVENT_READ, name)
        while True:
            for key, _ in selector.select(_POLL_SECONDS):
                if key.data is None:  # nobody waits for the outcome any more
                    return "failed", texts
                if chunk := os.read(key.fd, OUTPUT_BYTES):
                    texts[key.data] += chunk
                else:
                    selector.unregister(key.fd)
            if (status := _reap(child)) is not None:
                return {_MEMORY_STATUS: "memory", _CPU_TIME_STATUS: "timeout"}.get(status, "failed"), texts
            if max(map(len, texts.values())) > OUTPUT_BYTES:
                return "output", texts
            if time.monotonic() > deadline:
                return "timeout", texts
            if _resident_bytes() > task.memory:
                return "memory", texts


def _reap(child: int | None) -> int | None:
    """Buries the dead; the exit status of `child` if it is among them (128 + n: ended by signal n)."""
    found = None
    with suppress(ChildProcessError):
        while (dead := os.waitpid(-1, os.WNOHANG))[0]:
            if dead[0] == child:
                code = os.waitstatus_to_exitcode(dead[1])
                found = code if code >= 0 else 128 - code
    return found


def _rest(stream: int) -> bytes:
    """What a pipe still holds."""
    rest = b""
    with suppress(BlockingIOError):
        while chunk := os.read(stream, OUTPUT_BYTES):
            rest += chunk
    return rest


def _descendants(process: int | str) -> Iterator[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{process}/task"):
            for child in Path(f"/proc/{process}/task/{thread}/children").read_text().split():
                yield int(child)
                yield from _descendants(child)


def _resident_bytes() -> int:
    pages = 0
    for process in _descendants(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def _end_descendants() -> None:
    """Kills until nobody is left: a process may fork while its siblings are being killed."""
    while living := list(_descendants(os.getpid())):
        for process in living:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _reap(None)


# Between fork and exec: the child that takes privileges from itself and becomes the program.

_MEMORY_STATUS = 77
_CPU_TIME_STATUS = 128 + signal.SIGXCPU

# Runs program.py as __main__. The token is read before and written after it, so that leaving early does not pass.
_RUNNER = f"""
import os, sys, types
proof, verdict = map(int, sys.argv[1:])
def run():
    token = os.read(proof, 64)
    os.close(proof)
    me, streams = os.getpid(), [os.fstat(1), os.fstat(2)]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = ["program.py"]
    try:
        with open("program.py", encoding="utf-8", newline="") as file:
            source = file.read()
        exec(compile(source, "program.py", "exec", dont_inherit=True), main.__dict__)
        sys.__stdout__.flush()
        sys.__stderr__.flush()
        if not os.path.samestat(streams[0], os.fstat(1)) or not os.path.samestat(streams[1], os.fstat(2)):
            raise OSError("the program replaced its standard streams")
        os.getcwd()
    except MemoryError:
        os._exit({_MEMORY_STATUS})
    except Exception as error:
        sys.excepthook(type(error), error.with_traceback(error.__traceback__.tb_next), None)
        os._exit(1)
    if os.getpid() == me:
        os.write(verdict, token)
    os._exit(0)
run()
"""


def _be_child(task: _Task, token: bytes, writers: dict[str, int], user: int | None) -> NoReturn:
    try:
        os.umask(0o022)  # the unused user must be able to read what root makes for it
        folder = os.getcwd()
        if task.isolation == "namespaces":
            _enter_own_root(folder, task.packages)
            folder = "/tmp"
            program = os.fork()
            if program:
                os.close(writers["refusal"])
                _be_init(program)
        Path("program.py").write_bytes(task.code.encode(errors="replace"))
        if user is not None:
            os.chown(folder, user, user)
        _become_program(task, token, writers, folder, user)
    except BaseException as error:
        os.write(writers["refusal"], f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def _become_program(task: _Task, token: bytes, writers: dict[str, int], folder: str, user: int | None) -> NoReturn:
    os.setsid()  # or it could signal the supervisor as one of its own process group
    stdin, proof = _held(task.stdin.encode(errors="replace")), _held(token)
    for number, stream in enumerate((stdin, writers["output"], writers["error"])):
        os.dup2(stream, number)
    for kept in (proof, writers["verdict"]):
        os.set_inheritable(kept, True)
    _limit(task)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    alone = task.isolation == "namespaces" or user is not None
    if task.isolation == "seccomp":
        _guard_files(folder, task.packages, required=not alone)
    _filter_calls(own_signals_only=not alone)
    # One thread: a pool of one a core would break the limit on processes.
    environment = {"HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    runner = [task.python, "-I", "-u", "-X", "utf8", "-c", _RUNNER, str(proof), str(writers["verdict"])]
    os.execve(task.python, runner, environment)


def _be_init(program: int) -> NoReturn:
    """First process of the namespace: buries orphans and ends, and with it all others, when the program does."""
    _libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    while (status := _reap(program)) is None:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    os._exit(status)


def _held(content: bytes) -> int:
    """A descriptor that holds `content` to read."""
    descriptor = os.memfd_create("content")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _unused_user() -> int:
    """A user id no other supervisor takes, so that limits on processes are the program's own."""
    mapped = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    top = max(int(inside) + int(count) for inside, _, count in mapped)
    if top < 2**16:
        raise OSError(f"root cannot drop to an unused user here: only {top} user ids exist")
    return top - 2 - os.getpid() % 2**15


def _limit(task: _Task) -> None:
    cpu_seconds = math.ceil(task.seconds) + 1
    limits = {
        resource.RLIMIT_AS: task.memory,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))  # SIGXCPU, then SIGKILL
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


# What the C library is asked for.

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
_ANY_NAMESPACE = 0x7E020000
_READ_ONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18


def _libc(function: str, *arguments: int | bytes | None) -> int:
    """Calls the C library, integers as longs.

    Raises:
        OSError: the call failed; the message names it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    longs = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = library[function](*longs)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}{arguments} failed: {os.strerror(code)}")
    return result


def _unshare_processes() -> None:
    """The next child is the first process of a namespace; without privileges, in a user namespace."""
    if os.getuid() == 0:
        _libc("unshare", _NEW_PROCESSES)
        return
    user, group = os.getuid(), os.getgid()
    _libc("unshare", _NEW_USER | _NEW_PROCESSES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _enter_own_root(folder: str, packages: Iterable[str]) -> None:
    """Leaves network and file system behind for a root with the system and `packages` read-only, and an empty /tmp."""
    _libc("unshare", _NEW_MOUNTS | _NEW_NETWORK | _NEW_IPC | _NEW_UTS)
    _libc("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
    flags = _NOSUID | _NODEV
    _libc("mount", b"tmpfs", folder.encode(), b"tmpfs", flags, b"size=1m,mode=755")
    for path in ("/tmp", "/dev/shm"):  # first: `packages` may lie in them
        os.makedirs(folder + path)
        options = f"size={FOLDER_BYTES},nr_inodes=4096,mode=1777"
        _libc("mount", b"tmpfs", (folder + path).encode(), b"tmpfs", flags, options.encode())
    for path in (*_readable(packages), *_DEVICES):
        _show(path, folder)
    _libc("mount", None, folder.encode(), None, _REMOUNT | _READ_ONLY | flags, None)
    os.chroot(folder)  # no way back: the program may neither chroot nor hold a descriptor from outside
    os.chdir("/tmp")


def _readable(packages: Iterable[str]) -> list[str]:
    """Existing paths a program may read, parents before children: Python's as given and with links resolved."""
    paths = {*_SYSTEM, *packages, *map(os.path.realpath, packages)} - {"/"}
    return sorted(path for path in paths if os.path.exists(path))


def _show(path: str, root: str) -> None:
    """Makes `path` visible read-only under `root`, at the same place; a link stays a link."""
    target = root + path
    if os.path.lexists(target):  # within a folder that is shown already
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path) and path in _SYSTEM:
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        Path(target).touch()
    _libc("mount", path.encode(), target.encode(), None, _BIND | _RECURSIVE, None)
    _libc("mount", None, target.encode(), None, _REMOUNT | _BIND | _READ_ONLY | _mount_flags(path), None)


def _mount_flags(path: str) -> int:
    """Flags of the mount that holds `path`: without privileges a remount must repeat them."""
    status = os.statvfs(path).f_flag
    kept = status & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME)
    return kept | (1 << 21 if status & os.ST_RELATIME else 0)


# Landlock's system calls have the same numbers everywhere.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REFER, _TRUNCATE = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 13, 1 << 14


def _guard_files(folder: str, packages: Iterable[str], *, required: bool) -> None:
    """Landlock: all of `folder`, reading of the system and Python, nothing else."""
    try:
        version = _libc("syscall", _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        version = 0
    if version < 3:  # before 3, files could still be cut to nothing
        if required:
            raise OSError("Landlock is missing or too old (Linux 6.2 or newer has it)")
        return
    everything = (1 << 13) - 1 | _REFER | _TRUNCATE
    rules = _libc("syscall", _LANDLOCK_CREATE, struct.pack("=Q", everything), 8, 0)
    read = {path: _EXECUTE | _READ_FILE | _READ_DIR for path in _readable(packages)}
    devices = {path: _READ_FILE | _WRITE_FILE | _TRUNCATE for path in _DEVICES}
    for path, rights in {**read, **devices, folder: everything}.items():
        if not os.path.isdir(path):
            rights &= ~_READ_DIR
        with suppress(PermissionError):  # what another user may not open, it may not read either
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _libc("syscall", _LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, descriptor), 0)
    _libc("syscall", _LANDLOCK_RESTRICT, rules, 0)


# System calls refused to every program, as name:x86-64:aarch64. Not `socketpair`, which asyncio needs.
_REFUSED = """
socket:41:198 ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271 add_key:248:217 request_key:249:218
keyctl:250:219 bpf:321:280 perf_event_open:298:241 userfaultfd:323:282 io_uring_setup:425:425 mount:165:40
umount2:166:39 open_tree:428:428 move_mount:429:429 fsopen:430:430 chroot:161:51 pivot_root:155:41 unshare:272:97
setns:308:268 memfd_create:319:279 memfd_secret:447:447 shmget:29:194 msgget:68:186 mq_open:240:180
pidfd_send_signal:424:424 pidfd_getfd:438:438 process_madvise:440:440
"""
# Refused besides where the program shares its user with others: Landlock guards no modes, owners, times, attributes.
_REFUSED_TO_SHARED_USER = """
chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 chown:92:- lchown:94:- fchown:93:55 fchownat:260:54
utime:132:- utimes:235:- futimesat:261:- utimensat:280:88 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7
removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16 setpriority:141:140 sched_setaffinity:203:122
sched_setscheduler:144:119 sched_setparam:142:118 sched_setattr:314:274
"""
_KILL_CALL, _OTHER_SIGNALS = (
    "kill:62:129",
    "tkill:200:130 tgkill:234:131 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240",
)
_CLONE, _CLONE3 = "clone:56:220", "clone3:435:435"
_PRLIMIT, _FCNTL, _IOCTL = "prlimit64:302:261", "fcntl:72:25", "ioctl:16:29"
_SET_OWNER, _SET_OWNER_EX, _IOCTL_SET_OWNER = 8, 15, 0x8901  # whom the kernel signals when a descriptor is ready
_ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x50000, 0x7FFF0000
_X32 = 0x40000000  # system calls of a second table, under other numbers
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value


def _filter_calls(*, own_signals_only: bool) -> None:
    """Refuses system calls from here on, in this process and its descendants."""
    column, architecture = _ARCHITECTURES.get(platform.machine(), (0, 0))
    if not column:
        raise OSError(f"no system call filter for {platform.machine()}")

    def refuse(calls: str, *condition: int, error: int = errno.EPERM) -> list[_Instruction]:
        numbers = [call.split(":")[column] for call in calls.split()]
        return [step for number in numbers if number != "-" for step in _refusal(int(number), condition, error)]

    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL_PROCESS),
        *refuse(_REFUSED),
        *refuse(_KILL_CALL, 0, _JUMP_EQUAL, 1),  # the first process would ignore it, and the program go on
        *refuse(_KILL_CALL, 0, _JUMP_EQUAL, 0xFFFFFFFF),  # -1: everyone
        *refuse(_CLONE, 0, _JUMP_BITS, _ANY_NAMESPACE),
        *refuse(_CLONE3, error=errno.ENOSYS),  # its flags are out of a filter's sight; libraries then use clone
    ]
    if own_signals_only:
        me = os.getpid()
        program += refuse(_REFUSED_TO_SHARED_USER)
        program += refuse(f"{_KILL_CALL} {_OTHER_SIGNALS}", 0, _JUMP_EQUAL, me, False)
        program += refuse(_PRLIMIT, 0, _JUMP_BITS, 0xFFFFFFFF)
        program += refuse(_FCNTL, 1, _JUMP_EQUAL, _SET_OWNER) + refuse(_FCNTL, 1, _JUMP_EQUAL, _SET_OWNER_EX)
        program += refuse(_IOCTL, 1, _JUMP_EQUAL, _IOCTL_SET_OWNER)
    program.append((_RETURN, 0, 0, _ALLOW))
    steps = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    _libc("prctl", _PR_SET_SECCOMP, 2, struct.pack("@HP", len(program), ctypes.addressof(steps)), 0, 0)


def _refusal(number: int, condition: tuple[int, ...], error: int) -> list[_Instruction]:
    """Answers a system call with `error`; with a condition (argument, jump, value, wanted = True) only if it holds."""
    test = []
    if condition:
        argument, jump, value, *wanted = condition
        skipped = (0, 1) if all(wanted) else (1, 0)
        test = [(_LOAD, 0, 0, 16 + 8 * argument), (jump, *skipped, value)]
    body = [*test, (_RETURN, 0, 0, _ERRNO | error)]
    return [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, len(body), number), *body]
