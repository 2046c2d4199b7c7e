"""What a supervisor is given to run, and how much of the machine a program may use."""

import os
import sys
from typing import Literal, NamedTuple

Isolation = Literal["namespaces", "seccomp"]

MIB = 2**20
OUTPUT_BYTES = 2**18  # of standard output and of standard error, each; one more and the program is ended
FILE_BYTES = 16 * MIB  # of one file
FOLDER_BYTES = 64 * MIB  # of all files together
FOLDER_FILES = 4096  # folders count too
OPEN_FILES = 64
PROCESSES = 32  # threads count too
# Exit statuses that neither Python nor a shell gives a meaning.
MEMORY_STATUS = 77  # after a MemoryError
PASSED_STATUS = 78  # of the tests' process, at its very end

# What a program may read besides its Python: the dynamic linker, the C library and what links in them lead to.
SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /nix/store /etc/ld.so.cache /etc/alternatives".split()
DEVICES = "/dev/null /dev/zero /dev/random /dev/urandom".split()


class Task(NamedTuple):
    """A program with its limits, as it goes to the supervisor in JSON.

    Attributes:
        code: Python source.
        stdin: what standard input holds.
        seconds: wall time.
        memory: bytes of address space a process, and of resident memory over all its processes.
        python: the interpreter of the supervisor and of the program.
        packages: folders of that Python, which the program may read.
        tests: Python source that uses names of the program and raises if it is wrong; none if it tests itself.
    """

    code: str
    stdin: str
    seconds: float
    memory: int
    isolation: Isolation
    # A Python started as "../.venv/bin/python" has that in its paths, and what ".." begins at is not there inside.
    python: str = os.path.abspath(sys.executable)
    packages: tuple[str, ...] = (os.path.abspath(sys.prefix), os.path.abspath(sys.base_prefix))
    tests: str = ""
