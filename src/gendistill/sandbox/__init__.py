"""Runs programs a model wrote, with nothing of the machine within their reach; `run` has what other rooms call.

A supervisor, a small Python process of its own, starts each program, watches it and ends it with all its descendants.
It isolates in one of two ways, the first that this machine allows:

- "namespaces": the program sees a root of its own (Python and the system's libraries read-only, an empty /tmp in
  memory), no network and no other process. Root drops to an unused user besides; other users need user namespaces.
- "seccomp": where containers refuse namespaces. Root drops to an unused user; any other user is kept from files by
  Landlock and from signalling by the system call filter. The program's folder is on disk, without a quota.

In both ways a filter refuses sockets and the system calls by which programs reach into others, and limits bound CPU
time, memory, processes, open files and file sizes.

    run.py         the caller's side: makes a folder, starts a supervisor, reads its reply
    supervisor.py  forks the program, follows it to its end or to a limit, kills what is left
    program.py     between fork and exec: the child takes privileges from itself, then becomes the program
    isolation.py   what that child gives up: resource limits, namespaces and a root of its own, files by Landlock
    filter.py      and system calls, by a seccomp filter
    processes.py   finding, reaping and killing descendants
    libc.py        calls into the C library
    task.py        what a supervisor is given, and the limits

All but run.py run in the supervisor, which starts without site-packages, once for every program: they import the
standard library alone, and this file imports nothing.
"""
