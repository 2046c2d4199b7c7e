"""The exception that means "the user can mend this", and the one that means "the user wants an end"."""


class UserError(ValueError):
    """Bad input. The message says what was given, what is allowed and what to do; the command line prints it alone."""

    code = 2  # exit status, as for an unknown option


class MissingPackage(UserError):
    """What was asked for needs a package that is not installed: no record's fault, so that none is skipped for it."""


class Diverged(UserError):
    """A training whose loss is no number, or outside what was expected: whoever runs many of them tells it apart."""

    code = 3


class Stopped(BaseException):
    """The process was asked to end, by Ctrl-C or SIGTERM; the message says what is kept.

    No `Exception`, so that nothing which expects failures takes it for one.

    Args:
        code: exit status, as shells report a program that the signal has ended.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
