"""Show Sphinx's roles of the docstrings (:class:`Lease`) as plain code on the API pages."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: :func:`name`, :func:`~module.name`: the name is kept, the module before `~` is not.
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace the roles in the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_code, obj.docstring.value)


def _code(match: re.Match[str]) -> str:
    short, name = match.groups()
    return f"`{name.rpartition('.')[2] if short else name}`"
