# ruff: noqa: E501 (programs are easier to read in fewer lines)
"""Hostile programs by kind. None may pass, leave anything behind, or reach what lies outside.

A row: name, source, reasons it may end with. `{victim}`, `{socket}`, `{abstract}` and `{process}` are a file that all may write, a datagram socket's path, an
abstract one's name, and a process's id, all outside.
"""

# What the programs that forge are tested with. All of these must fail: none of them adds.
TESTS = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert abs(candidate(0.5, 0.25) - 0.75) < 1e-6
    assert sorted(candidate([2], [1])) == [1, 2]

check(add)
"""

FORGING = [
    ("wrong", "def add(a, b): return 0"),
    ("os._exit that prints", "import os\nos._exit = print\ndef add(a, b): return 0"),
    ("os._exit that does nothing", "import os\nos._exit = lambda status: None\ndef add(a, b): raise MemoryError"),
    ("os._exit(0) in a call", "import os\ndef add(a, b): os._exit(0)"),
    ("the status of a pass", "import os\ndef add(a, b): os._exit(78)"),
    ("the status of a pass at once", "import os\nos._exit(78)\ndef add(a, b): pass"),
    ("sys.exit(0)", "import sys\ndef add(a, b): sys.exit(0)"),
    ("SystemExit at once", "def add(a, b): pass\nraise SystemExit(0)"),
    ("atexit", "import atexit, os\natexit.register(os._exit, 78)\ndef add(a, b): raise SystemExit"),
    ("excepthook", "import os, sys\nsys.excepthook = lambda *error: os._exit(78)\ndef add(a, b): 1 / 0"),
    (
        "frame search",
        "import os, sys\nframe = sys._getframe()\nwhile frame:\n for value in frame.f_locals.values():\n"
        "  if isinstance(value, (str, bytes)):\n   for number in range(3, 64):\n"
        "    try: os.write(number, value if isinstance(value, bytes) else value.encode())\n    except OSError: pass\n"
        " frame = frame.f_back\nos._exit(0)\ndef add(a, b): return 0",
    ),
    (
        "channel taken over",
        "import sys\nframe = sys._getframe()\nwhile 'channel' not in frame.f_locals: frame = frame.f_back\n"
        "channel = frame.f_locals['channel']\n"
        "for answer in (['loaded', frame.f_locals['token']], ['did', ['add'], []], ['did', None, []]):\n"
        " channel.send(answer)\nimport os\nos._exit(78)\ndef add(a, b): return 0",
    ),
    (
        "answers that claim tests' objects",
        "import sys\nframe = sys._getframe()\nwhile 'channel' not in frame.f_locals: frame = frame.f_back\n"
        "channel = frame.f_locals['channel']\nchannel.encode = lambda value: {'yours': 0}\n"
        "def add(a, b): return 0",
    ),
    (
        "jump over lines",
        "import sys\ndef trace(frame, event, argument):\n while frame:\n  frame.f_trace = trace\n"
        "  try: frame.f_lineno += 1\n  except Exception: pass\n  frame = frame.f_back\n return trace\n"
        "def add(a, b):\n sys.settrace(trace)\n return 0",
    ),
    ("profiler", "import os, sys\nsys.setprofile(lambda *event: os._exit(78))\ndef add(a, b): return 0"),
    (
        "garbage collector",
        "import gc, types\nfor each in gc.get_objects():\n"
        " if isinstance(each, types.FunctionType) and each.__name__ in ('check', '_show', '_run_tests'):\n"
        "  each.__code__ = (lambda *rest: 78).__code__\ndef add(a, b): return 0",
    ),
    ("equals everything", "class Always:\n def __eq__(self, other): return True\ndef add(a, b): return Always()"),
    (
        "number that equals everything",
        "class Always(float):\n def __eq__(self, other): return True\n def __sub__(self, other): return 0.0\n"
        " def __abs__(self): return 0.0\n def __lt__(self, other): return True\ndef add(a, b): return Always(7)",
    ),
    (
        "no number, but close to all",
        "class Close:\n def __eq__(self, other): return True\n def __sub__(self, other): return self\n"
        " def __abs__(self): return self\n def __lt__(self, other): return True\n def __iter__(self): return iter([1, 2])\n"
        "def add(a, b): return Close()",
    ),
    ("text that equals everything", "class T(str):\n __eq__ = lambda a, b: True\n __hash__ = str.__hash__\nadd = T"),
    ("own abs", "def abs(x): return 0\ndef sorted(x): return [1, 2]\ndef add(a, b): return 3"),
    ("own builtins", "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.sorted = lambda x: [1, 2]\nadd = lambda a, b: 3"),
    ("own AssertionError", "import builtins\nbuiltins.AssertionError = SystemExit\ndef add(a, b): return 0"),
    ("own check", "def check(candidate): pass\ndef add(a, b): return 0"),
    ("check replaced in a call", "def add(a, b):\n global check\n check = print\n return 0"),
    ("swallows what follows", "def add(a, b): return 0\nif False: '''"),
    ("open string", "def add(a, b): return 0\nx = '''"),
    ("line that goes on", "def add(a, b): return 0\nx = 1 or \\"),
    ("changes its arguments", "def add(a, b):\n if isinstance(a, list): a.clear()\n return a"),
    ("reads what is expected", "import re\nadd = lambda a, b: int(re.findall('== (.)', open('tests.py').read())[0])"),
    (
        "reads every descriptor",
        "import os\ndef add(a, b):\n for number in range(3, 64):\n  try: os.lseek(number, 0, 0); os.read(number, 999)\n"
        "  except OSError: pass\n os._exit(78)",
    ),
    ("endless answer", "def add(a, b): return iter(lambda: 1, 2)"),
    ("interrupts the tests", "import os, signal\ndef add(a, b): os.kill(os.getppid(), signal.SIGINT); return 0"),
    ("kills the tests", "import os, signal\ndef add(a, b): os.kill(os.getppid(), signal.SIGKILL); return 0"),
    (
        "exception without end",
        "class E(AssertionError):\n __str__ = lambda self: str(self)\ndef add(a, b): raise E",
    ),
    ("fork answers twice", "import os\ndef add(a, b): os.fork(); return 0"),
    ("thread ends the process", "import os, threading\nthreading.Timer(0.01, os._exit, [78]).start()\ndef add(a, b):\n while 1: 1"),
]  # fmt: skip

_FORK = "import os, time\nfor _ in range({n}):\n if not os.fork():\n  {body}\ntime.sleep(9)\n"
STOPS = ("failed", "memory", "timeout")
RESOURCES = [
    ("endless loop", "while True: pass", ("timeout",)),
    ("sleep with signals ignored", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(9)", ("timeout",)),
    ("stops itself", "import os; os.kill(os.getpid(), 19)\nwhile True: pass", ("timeout",)),
    ("stops the tests", "import os; os.kill(os.getppid(), 19)\nwhile True: pass", ("timeout", "failed")),
    ("fork bomb", "import os\nwhile True: os.fork()", ("failed",)),
    ("patient fork bomb", "import os\nwhile True:\n try: os.fork()\n except OSError: pass", ("timeout",)),
    ("runaway forks", "import os\nwhile True:\n if os.fork(): os._exit(0)", ("failed",)),
    ("threads", "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[9]).start()", STOPS),
    ("10 GB", "x = bytearray(10**10)", ("memory",)),
    ("slow growth", "x = []\nwhile True: x.append(bytes(10**6))", ("memory",)),
    ("memory of many processes", _FORK.format(n=7, body="x = b'1' * (40 << 20); time.sleep(9)"), ("memory",)),
    (
        "shared pages, handed on and unmapped",
        "import mmap, os, time\nwhile True:\n m = mmap.mmap(-1, 40 << 20)\n m.write(b'1' * (40 << 20))\n"
        " if not os.fork(): time.sleep(9)\n m.close()",
        ("memory",),
    ),
    (
        "deleted file, mapped",
        "import mmap, os, time\nm = []\nfor n in range(12):\n f = open('f', 'w+b'); f.truncate(15 << 20)\n"
        " m.append(mmap.mmap(f.fileno(), 0)); f.close(); os.unlink('f')\n"
        " for at in range(0, 15 << 20, 4096): m[-1][at] = 1\nwhile True: time.sleep(9)",
        STOPS,
    ),
    (
        "buffers of sockets",
        "import os, socket, time\nfor _ in range(26):\n if not os.fork(): break\nheld = []\nwhile True:\n"
        " try: a, b = held[-2:] if 0 else socket.socketpair()\n except OSError: time.sleep(9)\n a.setblocking(False)\n"
        " b.setblocking(False)\n held += a, b\n for s in a, b:\n  try:\n   while True: s.send(bytes(65536))\n  except OSError: pass",
        ("memory",),
    ),
    ("larger buffers", "import socket\na, b = socket.socketpair()\na.setsockopt(1, 7, 1 << 20)", ("failed",)),
    ("memory file", "import os; os.memfd_create('x')", ("failed",)),
    ("System V memory", "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1666) >= 0", ("failed",)),
    ("/dev/shm", "for n in range(99): open(f'/dev/shm/{n}', 'wb').write(bytes(8 << 20))", STOPS),
    ("disk", "for n in range(99): open(str(n), 'wb').write(b'1' * (8 << 20))\nimport time; time.sleep(9)", STOPS),
    (
        "deleted files",
        "import os, time\nx = []\nfor n in range(20):\n f = open('f', 'wb'); f.write(b'1' * (8 << 20)); f.flush()\n"
        " x.append(f); os.unlink('f')\ntime.sleep(9)",
        STOPS,
    ),
    ("many small files", "for n in range(10**5): open(str(n), 'w').close()", ("failed", "memory")),
    ("big file", "f = open('big', 'wb')\nwhile True: f.write(bytes(10**6))", ("failed", "memory")),
    (
        "deep folders",
        "import os\nwhile True: os.mkdir('d' * 99); os.chdir('d' * 99)",
        ("failed",),
    ),
    ("unreadable folders", "import os\nos.umask(0)\nos.mkdir('a', 0o300); os.mkdir('a/b', 0o300); os.mkdir('a/b/c', 0)\n1 / 0", ("failed",)),
    ("open files", "x = [open('file', 'w') for _ in range(10**4)]", ("failed",)),
    ("deep recursion", "def f(): f()\nf()", ("failed",)),
    ("crash", "import ctypes; ctypes.string_at(0)", ("failed",)),
    ("endless printing", "while True: print('x' * 1000)", ("output",)),
    ("endless complaints", "import sys\nwhile True: sys.stderr.write('x' * 1000)", ("output",)),
    ("printing from a child", "import os, time\nif not os.fork():\n while True: print('x' * 1000)\ntime.sleep(9)", ("output",)),
    (
        "orphan in a session of its own",
        "import os, time\nif not os.fork():\n os.setsid()\n if not os.fork():\n  os.closerange(0, 64); time.sleep(99)\n os._exit(0)\n"
        "os.wait(); 1 / 0",
        ("failed",),
    ),
    ("chain of orphans", "import os, time\nwhile True:\n if os.fork(): os._exit(0)\n os.setsid()", ("failed",)),
    ("kills its parent", "import os; os.kill(os.getppid(), 9)", ("failed",)),
    ("kills its group", "import os; os.kill(0, 9)", ("failed",)),
    ("raised limits", "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", ("failed",)),
]  # fmt: skip

_CALL = "import ctypes; assert ctypes.CDLL(None).{call} {test}"
ESCAPES = [
    ("TCP", "import socket; socket.create_connection(('127.0.0.1', 22), 1)"),
    ("UDP", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"),
    ("names", "import urllib.request; urllib.request.urlopen('http://example.org', timeout=1)"),
    ("local stream", "import socket; socket.socket(socket.AF_UNIX).connect({socket!r})"),
    ("netlink", "import socket; socket.socket(16, socket.SOCK_RAW)"),
    ("datagram pair", "import socket; a, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.sendto(b'x', {socket!r})"),
    ("datagram pair, abstract", "import socket; a, b = socket.socketpair(type=2)\na.sendto(b'x', {abstract!r})"),
    ("datagram pair, connected", "import socket; a, b = socket.socketpair(type=2)\na.connect({socket!r}); a.send(b'x')"),
    ("datagram pair, message", "import socket; a, b = socket.socketpair(type=2)\na.sendmsg([b'x'], [], 0, {socket!r})"),
    ("stream pair, connected", "import socket; a, b = socket.socketpair()\na.connect({socket!r})"),
    ("stream pair, bound", "import socket; a, b = socket.socketpair(type=5)\na.bind('name')"),
    ("descriptors in a message", "import socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])"),
    ("writes a file", "open({victim!r}, 'w').write('changed')"),
    ("cuts a file", "import os; os.truncate({victim!r}, 0)"),
    ("changes a mode", "import os; os.chmod({victim!r}, 0)"),
    ("removes a file", "import os; os.unlink({victim!r})"),
    ("reads a file", "open({victim!r}).read()"),
    ("links a file", "import os; os.link({victim!r}, 'mine'); open('mine', 'a').write('x')"),
    ("follows a link", "import os; os.symlink({victim!r}, 'mine'); open('mine', 'a').write('x')"),
    ("makes a file beside it", "open({victim!r} + '.new', 'w')"),
    ("writes into Python", "import sys; open(sys.prefix + '/new', 'w')"),
    ("passwords", "open('/etc/shadow').read()"),
    ("homes", "import os; assert os.listdir('/root') or os.listdir('/home')"),
    ("secrets of the environment", "import os; assert {{'SECRET', 'USER', 'PATH'}} & set(os.environ)"),
    ("environment of the supervisor", "import os; open(f'/proc/{{os.getppid()}}/environ').read()"),
    ("memory of the tests", "import os; open(f'/proc/{{os.getppid()}}/mem', 'r+b')"),
    ("memory of a process", "open('/proc/{process}/mem', 'rb')"),
    ("kernel settings", "open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/sh')"),
    ("kills a process", "import os; os.kill({process}, 9)"),
    ("kills everyone", "import os; os.kill(-1, 9)"),
    ("traces a process", _CALL.format(call="ptrace(16, {process}, 0, 0)", test="== 0")),
    ("traces the tests", "import os; " + _CALL.format(call="ptrace(16, os.getppid(), 0, 0)", test="== 0")),
    ("writes into the tests", "import os; " + _CALL.format(call="syscall(311, os.getppid(), 0, 0, 0, 0, 0)", test="== 0")),
    ("takes a descriptor", "import os; fd = os.pidfd_open(os.getppid()); " + _CALL.format(call="syscall(438, fd, 0, 0)", test=">= 0")),
    ("new namespaces", _CALL.format(call="unshare(0x10000000)", test="== 0")),
    ("clone with namespaces", _CALL.format(call="syscall(56, 0x10000011, 0, 0, 0, 0)", test=">= 0")),
    ("mounts", _CALL.format(call="mount(b'none', b'/tmp', b'tmpfs', 0, None)", test="== 0")),
    ("other root", "import os; os.chroot('.')"),
    ("keys", _CALL.format(call="syscall(250, 0, -3, 1)", test=">= 0")),
    ("BPF", _CALL.format(call="syscall(321, 0, 0, 0)", test=">= 0")),
    ("io_uring", _CALL.format(call="syscall(425, 8, bytes(120))", test=">= 0")),
    ("becomes root", "import os; os.setuid(0); assert os.getuid() == 0; open('/etc/shadow')"),
    ("sudo", "import subprocess; subprocess.run(['sudo', '-n', 'true'], check=True)"),
    ("priority", "import os; os.nice(-5)"),
    ("terminal", "import fcntl; fcntl.ioctl(open('/dev/tty'), 0x5412, b'x')"),
]  # fmt: skip

# Tries each escape in a process of its own; prints the names of those that reached their last line, and fails if any.
ALL_ESCAPES = """
import os, time
def fork():
    while True:
        try:
            return os.fork()
        except BlockingIOError:  # other programs of this user have as many processes as it may
            time.sleep(0.01)
worked = []
for name, source in ESCAPES:
    child = fork()
    if child == 0:
        try:
            exec(source, {})
        except BaseException:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        worked.append(name)
import json
print(json.dumps(worked))
assert not worked, worked
"""
