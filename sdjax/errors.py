"""The one exception that means: the input was wrong, and here is what to do about it."""


class InputError(ValueError):
    """Input from outside that cannot be used; the message is one line, fit to be shown to a person.

    It names the file or argument, what was found, what was expected, and what to do. The command
    line prints it on stderr without a traceback and exits with code 2.
    """
