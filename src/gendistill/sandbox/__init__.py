"""Runs programs a model wrote, with nothing of the machine within their reach; `run` has what other rooms call.

A supervisor, a small Python process of its own, starts each program, watches it and ends it with all its descendants.
It isolates in one of two ways, the first that this machine allows:

- "namespaces": the program sees a root of its own (Python and the system's libraries read-only, an empty /tmp in
  memory), no network and no other process. Root drops to an unused user besides; other users need user namespaces.
- "seccomp": where containers refuse namespaces. Root drops to an unused user; any other user is kept from files by
  Landlock and from signalling by the system call filter. The program's folder is on disk; the supervisor looks at it.

In both ways a filter refuses sockets and the system calls by which programs reach into others, and limits bound CPU
time, memory, processes, open files, file sizes and what the folder holds. Memory is limited by a control group where
one can be made; everywhere the supervisor adds up private pages, shared ones once, and buffers of sockets.

Tests run isolated as well, in a process that the program does not share. It calls the program's functions through a
pipe; only plain values are copied, and it alone says that the tests have passed (`runner`).

What is not covered: a program without tests says itself whether it passed; tests that compare two objects of the
program's own classes ask these; without Landlock (Linux before 6.2) "seccomp" leaves files to read and write that are
open to every user; where no control group can be made, memory may pass its limit for the 20 ms between two looks.

    run.py         the caller's side: starts a supervisor, reads its reply
    folders.py     folders of programs, and what killed callers have left of theirs
    supervisor.py  forks the program, follows it to its end or to a limit, kills what is left
    program.py     between fork and exec: the child takes privileges from itself, then becomes the runner
    isolation.py   what that child gives up: resource limits, namespaces and a root of its own, files by Landlock
    filter.py      and system calls, by a seccomp filter
    runner.py      in isolation: the program in one process, its tests in another
    channel.py     requests and plain values between these two
    sides.py       what each end does with a request; `Remote`, an object of the program in its tests
    usage.py       memory and disk that a program holds
    cgroup.py      a control group for its memory
    processes.py   finding, reaping and killing descendants
    libc.py        calls into the C library
    task.py        what a supervisor is given, and the limits

All but run.py, folders.py and most of cgroup.py run in the supervisor, which starts without site-packages, once for
every program: they import the standard library alone, and this file imports nothing.
"""
