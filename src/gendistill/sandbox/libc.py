"""Calls into the C library that Python's os module does not offer."""

import ctypes
import os

# Options of prctl, from <linux/prctl.h>.
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38


def libc(function: str, *arguments: int | bytes | None) -> int:
    """Calls the C library, integers as longs.

    Raises:
        OSError: the call failed; the message names it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    # syscall and prctl are variadic: a plain int would leave the upper half of the register as it was.
    longs = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = library[function](*longs)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}{arguments} failed: {os.strerror(code)}")
    return result
