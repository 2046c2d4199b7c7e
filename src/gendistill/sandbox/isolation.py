"""What a program gives up before it starts: resources, other processes, the network and files.

Limits are for both ways of isolating, namespaces for "namespaces", Landlock for "seccomp".
"""

import math
import os
import resource
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gendistill.sandbox.libc import libc
from gendistill.sandbox.task import DEVICES, FILE_BYTES, FOLDER_BYTES, FOLDER_FILES, OPEN_FILES, SYSTEM, Task

# Flags of unshare (<linux/sched.h>) and of mount (<linux/mount.h>).
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
_READ_ONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
# Landlock's system calls have the same numbers everywhere.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REFER, _TRUNCATE = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 13, 1 << 14


def unused_user() -> int:
    """A user id no other supervisor takes, so that limits on processes are the program's own."""
    mapped = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    # Each line of the map is "first id in here, first id outside, how many": a container may have only a few.
    top = max(int(inside) + int(count) for inside, _, count in mapped)
    if top < 2**16:
        raise OSError(f"root cannot drop to an unused user here: only {top} user ids exist")
    return top - 2 - os.getpid() % 2**15  # by the supervisor's process id, which no other living supervisor has


def limit_resources(task: Task) -> None:
    """What a process of the program may use; its children inherit it. Processes the runner limits."""
    cpu_seconds = math.ceil(task.seconds) + 1  # wall time is measured by the supervisor and ends it first
    limits = {
        resource.RLIMIT_AS: task.memory,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,  # a crash leaves no file
        resource.RLIMIT_MSGQUEUE: 0,
    }
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))  # SIGXCPU, then SIGKILL
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def unshare_processes() -> None:
    """The next child is the first process of a namespace; without privileges, in a user namespace."""
    if os.getuid() == 0:
        libc("unshare", _NEW_PROCESSES)
        return
    user, group = os.getuid(), os.getgid()  # before: afterwards both are nobody's until they are mapped
    libc("unshare", _NEW_USER | _NEW_PROCESSES)
    Path("/proc/self/setgroups").write_text("deny")  # or the kernel refuses the map of groups
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def enter_own_root(folder: str, packages: Iterable[str]) -> None:
    """Leaves network and file system behind for a root with the system and `packages` read-only, and an empty /tmp."""
    libc("unshare", _NEW_MOUNTS | _NEW_NETWORK | _NEW_IPC | _NEW_UTS)
    libc("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)  # nothing mounted here shows outside
    flags = _NOSUID | _NODEV
    libc("mount", b"tmpfs", folder.encode(), b"tmpfs", flags, b"size=1m,mode=755")
    for path in ("/tmp", "/dev/shm"):  # first: `packages` may lie in them
        os.makedirs(folder + path)
        options = f"size={FOLDER_BYTES},nr_inodes={FOLDER_FILES},mode=1777"
        libc("mount", b"tmpfs", (folder + path).encode(), b"tmpfs", flags, options.encode())
    for path in (*_readable(packages), *DEVICES):
        _show(path, folder)
    libc("mount", None, folder.encode(), None, _REMOUNT | _READ_ONLY | flags, None)
    os.chroot(folder)  # no way back: the program may neither chroot nor hold a descriptor from outside
    os.chdir("/tmp")


def _readable(packages: Iterable[str]) -> list[str]:
    """Existing paths a program may read, parents before children: Python's as given and with links resolved."""
    paths = {*SYSTEM, *packages, *map(os.path.realpath, packages)} - {"/"}
    return sorted(path for path in paths if os.path.exists(path))


def _show(path: str, root: str) -> None:
    """Makes `path` visible read-only under `root`, at the same place; a link stays a link."""
    target = root + path
    if os.path.lexists(target):  # within a folder that is shown already
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path) and path in SYSTEM:
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        Path(target).touch()
    # Twice: the kernel takes no other flags with a new bind mount.
    libc("mount", path.encode(), target.encode(), None, _BIND | _RECURSIVE, None)
    libc("mount", None, target.encode(), None, _REMOUNT | _BIND | _READ_ONLY | _mount_flags(path), None)


def _mount_flags(path: str) -> int:
    """Flags of the mount that holds `path`: without privileges a remount must repeat them."""
    status = os.statvfs(path).f_flag
    repeated = status & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME)
    return repeated | (1 << 21 if status & os.ST_RELATIME else 0)  # MS_RELATIME has another number than ST_RELATIME


def guard_files(folder: str, packages: Iterable[str], *, required: bool) -> bool:
    """Landlock: all of `folder`, reading of the system and Python, nothing else. Whether this kernel offers it."""
    try:
        version = libc("syscall", _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        version = 0  # a kernel without it, or with it switched off
    if version < 3:  # before 3, files could still be cut to nothing
        if required:
            raise OSError("Landlock is missing or too old (Linux 6.2 or newer has it)")
        return False
    # What version 3 knows: of these rights, those that no rule allows are refused.
    everything = (1 << 13) - 1 | _REFER | _TRUNCATE
    rules = libc("syscall", _LANDLOCK_CREATE, struct.pack("=Q", everything), 8, 0)
    read = {path: _EXECUTE | _READ_FILE | _READ_DIR for path in _readable(packages)}
    devices = {path: _READ_FILE | _WRITE_FILE | _TRUNCATE for path in DEVICES}
    for path, rights in {**read, **devices, folder: everything}.items():
        if not os.path.isdir(path):
            rights &= ~_READ_DIR  # the kernel refuses a rule for a file with rights of folders
        with suppress(PermissionError):  # what another user may not open, it may not read either
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            libc("syscall", _LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, descriptor), 0)
    libc("syscall", _LANDLOCK_RESTRICT, rules, 0)
    return True
