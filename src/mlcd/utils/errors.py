"""The one exception that users see: a single line that names the file or key and how to fix it."""


class UserError(Exception):
    """A mistake or a condition that the user can fix; printed as one line, without a traceback.

    Raise it with a sentence that names the file, row or config key first and the fix last.
    The command line turns it into exit status 2 (see :mod:`mlcd.cli`).
    """
