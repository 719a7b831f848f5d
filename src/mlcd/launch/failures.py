"""How a gang may end other than by its result."""

from __future__ import annotations

from mlcd.utils.errors import UserError


class GangFailed(UserError):
    """A rank failed, or the gang was ended from outside.

    `restartable`: another start may go better. Not so if the user is to fix something first.
    """

    def __init__(self, message: str, *, restartable: bool = True) -> None:
        super().__init__(message)
        self.restartable = restartable


class Transient(Exception):
    """The job has ended through no fault of the work's, and may be submitted again."""
