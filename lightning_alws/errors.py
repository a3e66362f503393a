"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in a setting, a file or a command line.

    The message is one sentence (or two) that says what is wrong, which argument has which value, and what to do.
    The command line prints it without a traceback and exits with status 2.
    """
