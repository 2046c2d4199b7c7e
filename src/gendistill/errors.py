"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """Bad input. The message says what was given, what is allowed and what to do; the command line prints it alone."""
