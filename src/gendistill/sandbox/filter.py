"""The system call filter (seccomp): a small program that the kernel runs before each call."""

import ctypes
import errno
import platform
import struct

from gendistill.sandbox.libc import PR_SET_SECCOMP, libc

# System calls refused to every program, as name:x86-64:aarch64. Not `socketpair`, which asyncio needs: what it gives
# may go nowhere else, by a name or a message with one, and passes on no descriptors, in which memory could be hidden.
_REFUSED = """
socket:41:198 connect:42:203 bind:49:200 sendmsg:46:211 sendmmsg:307:269 ptrace:101:117 process_vm_readv:310:270
process_vm_writev:311:271 add_key:248:217 request_key:249:218 keyctl:250:219 bpf:321:280 perf_event_open:298:241
userfaultfd:323:282 io_uring_setup:425:425 mount:165:40 umount2:166:39 open_tree:428:428 move_mount:429:429
fsopen:430:430 chroot:161:51 pivot_root:155:41 unshare:272:97 setns:308:268 memfd_create:319:279 memfd_secret:447:447
shmget:29:194 msgget:68:186 mq_open:240:180 pidfd_send_signal:424:424 pidfd_getfd:438:438 process_madvise:440:440
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
_SOCKETPAIR, _SENDTO, _SETSOCKOPT = "socketpair:53:199", "sendto:44:206", "setsockopt:54:208"
_PRCTL, _SET_DUMPABLE = "prctl:157:167", 4
_UNIX, _NO_STREAM, _SEND_BUFFER = 1, 0x0E, 7  # address family; bits of a socket's type that no stream has; option
_SET_OWNER, _SET_OWNER_EX, _IOCTL_SET_OWNER = 8, 15, 0x8901  # whom the kernel signals when a descriptor is ready
# Column of a system call's number above, and what the kernel calls the architecture (AUDIT_ARCH_*).
_ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}
# Operations and verdicts of a filter, from <linux/bpf_common.h> and <linux/seccomp.h>.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x50000, 0x7FFF0000
_ANY_NAMESPACE = 0x7E020000  # the CLONE_NEW* flags that clone takes
_X32 = 0x40000000  # system calls of a second table, under other numbers
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value


def filter_calls(*, no_signals: bool) -> None:
    """Refuses system calls from here on, in this process and its descendants.

    Args:
        no_signals: the program shares its user with others, so it may signal nobody.

    Raises:
        OSError: there are no numbers for this processor, or the kernel takes no filter.
    """
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(f"no system call filter for {platform.machine()}; known: {', '.join(_ARCHITECTURES)}")
    program = _program(*_ARCHITECTURES[platform.machine()], no_signals)
    # A sock_fprog: how many instructions, and where they lie. The buffer must live until the call has returned.
    steps = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    libc("prctl", PR_SET_SECCOMP, 2, struct.pack("@HP", len(program), ctypes.addressof(steps)), 0, 0)


def _program(column: int, architecture: int, no_signals: bool) -> list[_Instruction]:
    """What the kernel runs: refusals one after another, and what none of them refuses is allowed."""

    def refuse(calls: str, *condition: int, error: int = errno.EPERM) -> list[_Instruction]:
        numbers = [call.split(":")[column] for call in calls.split()]
        return [step for number in numbers if number != "-" for step in _refusal(int(number), condition, error)]

    # What a filter reads is seccomp_data: the call's number at 0, the architecture at 4, six arguments from 16 on.
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),  # of another architecture: its numbers mean other calls
        (_LOAD, 0, 0, 0),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL_PROCESS),
        *refuse(_REFUSED),
        *refuse(_KILL_CALL, 0, _JUMP_EQUAL, 1),  # the first process would ignore it, and the program go on
        *refuse(_KILL_CALL, 0, _JUMP_EQUAL, 0xFFFFFFFF),  # -1: everyone
        *refuse(_SOCKETPAIR, 0, _JUMP_EQUAL, _UNIX, False),
        *refuse(_SOCKETPAIR, 1, _JUMP_BITS, _NO_STREAM),
        *refuse(_SENDTO, 5, _JUMP_BITS, 0xFFFFFFFF),  # with an address: its length is not 0
        *refuse(_SETSOCKOPT, 2, _JUMP_EQUAL, _SEND_BUFFER),  # the supervisor counts on its size
        *refuse(_CLONE, 0, _JUMP_BITS, _ANY_NAMESPACE),
        *refuse(_CLONE3, error=errno.ENOSYS),  # its flags are out of a filter's sight; libraries then use clone
    ]
    if no_signals:
        program += refuse(_REFUSED_TO_SHARED_USER)
        program += refuse(f"{_KILL_CALL} {_OTHER_SIGNALS}")
        # The supervisor, of the same user, could not look into it any more.
        program += refuse(_PRCTL, 0, _JUMP_EQUAL, _SET_DUMPABLE)
        program += refuse(_PRLIMIT, 0, _JUMP_BITS, 0xFFFFFFFF)  # 0 is the process itself; any other id is refused
        program += refuse(_FCNTL, 1, _JUMP_EQUAL, _SET_OWNER) + refuse(_FCNTL, 1, _JUMP_EQUAL, _SET_OWNER_EX)
        program += refuse(_IOCTL, 1, _JUMP_EQUAL, _IOCTL_SET_OWNER)
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _refusal(number: int, condition: tuple[int, ...], error: int) -> list[_Instruction]:
    """Answers a system call with `error`; with a condition (argument, jump, value, wanted = True) only if it holds."""
    test = []
    if condition:
        argument, jump, value, *wanted = condition
        skipped = (0, 1) if all(wanted) else (1, 0)  # of the one instruction behind it, which refuses
        # The lower half of the argument: ids and flags are 32 bits wide.
        test = [(_LOAD, 0, 0, 16 + 8 * argument), (jump, *skipped, value)]
    body = [*test, (_RETURN, 0, 0, _ERRNO | error)]
    # The number is loaded anew: a test before this one has put an argument in its place.
    return [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, len(body), number), *body]
