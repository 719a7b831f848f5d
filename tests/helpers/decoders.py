"""Decoders that misbehave, in a module that worker processes import in a moment."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlcd.data.decode import BadImage
from mlcd.data.decode_pool import DecodeImage


@dataclass(frozen=True)
class Dying:
    """Decodes as usual, but one image ends its worker, as a crash in a C library would.

    `once` names a file; while it is missing the crash happens, and makes it.
    """

    usual: DecodeImage
    deadly: bytes
    once: str = ""

    def __call__(self, data: bytes) -> np.ndarray:
        if data == self.deadly and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.usual(data)


@dataclass(frozen=True)
class Lengths:
    """Returns the length, or makes trouble by the first byte: b, h (hangs) or k (killed)."""

    def __call__(self, data: bytes) -> np.ndarray:
        if data[:1] == b"h":
            time.sleep(60)
        if data[:1] == b"k":
            os.kill(os.getpid(), signal.SIGKILL)
        if data[:1] == b"b":
            raise BadImage("damaged", "for the test")
        return np.array([len(data)])


@dataclass(frozen=True)
class Marking:
    """Pixels [2, 2, 3] of the first byte, z being damaged; leaves files of these in `folder`."""

    folder: str

    def __call__(self, data: bytes) -> np.ndarray:
        if data[:1] == b"z":
            raise BadImage("damaged", "for the test")
        Path(self.folder, str(data[0])).touch()
        return np.full((2, 2, 3), data[0], np.uint8)
