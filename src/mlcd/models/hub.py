"""What is told when released weights or a tokenizer cannot be fetched."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from mlcd.utils.errors import UserError


@contextlib.contextmanager
def one_line(what: str, instead: str = "give the file's path") -> Iterator[None]:
    """Turn the many kinds of failed downloads into one line; `instead`: what else to give.

    open_clip and the hub log the same failure through the root logger, which is silent meanwhile.
    Raises :class:`UserError`, and lets those of the block pass.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what} could not be fetched ({reason}); on a machine with network run the same "
            "command once to fill the cache of the hub (HF_HOME) and copy that folder, or "
            f"{instead}"
        ) from None
    finally:
        logging.disable(disabled)
