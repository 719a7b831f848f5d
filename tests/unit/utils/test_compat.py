"""torchvision beside any build of torch: transforms, timm and open_clip import."""

import subprocess
import sys

_RUN = """
import os, sys
import mlcd.utils.compat
assert os.environ.pop("NO_ALBUMENTATIONS_UPDATE") == "1"
import torchvision
first = torchvision
import torchvision.transforms, timm, open_clip
mlcd.utils.compat.import_torchvision()
assert sys.modules["torchvision"] is first
from PIL import Image
assert torchvision.transforms.functional.resize(Image.new("RGB", (9, 7)), [3, 4]).size == (4, 3)
import mlcd.stages.download.fetch
assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
"""


def test_import_in_a_fresh_process_and_twice():
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", _RUN], env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def test_other_errors_are_not_hidden():
    code = (
        "import sys, types, importlib.abc\n"
        "class Broken(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torchvision': raise RuntimeError('out of disk')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "import mlcd.utils.compat\n"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert result.returncode == 1
    assert b"RuntimeError: out of disk" in result.stderr
