"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in a setting, a file or a command line.

    The message is one sentence (or two) that says what is wrong, which argument has which value, and what to do.
    The command line prints it without a traceback and exits with status 2.
    """


def check_at_least(section: str, **limits: tuple[float, float]) -> None:
    """Raise a UserError for the first setting that is below what it may be.

    Args:
        section: the settings' name on the command line, such as ``fid_kid``.
        limits: (value, least value) of each setting, by name.
    """
    for name, (value, least) in limits.items():
        if not value >= least:
            raise UserError(f"{section}.{name} is {value}; give at least {least}.")
