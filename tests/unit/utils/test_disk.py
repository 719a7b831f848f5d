"""What a disk refuses is one line: the file, how much is free, what to do. Real refusals."""

import contextlib
import errno
import gc
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mlcd.cli import main
from mlcd.data import hdf5
from mlcd.utils import disk, logging
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, write_json, write_text
from mlcd.utils.processes import check_workers, ending


@contextlib.contextmanager
def largest_file(size: int):
    """A disk that takes no more than `size` bytes per file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _hdf5(path):
    hdf5.write(path, "kind", {"rows": np.ones((4000, 64), np.float32)}, {})


def _parquet(path):
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"a": np.random.default_rng(0).random(50_000)}), temporary)


def _safetensors(path):
    with atomic_path(path) as temporary:
        save_file({"a": torch.ones(100_000)}, temporary)


def _text(path):
    write_text(path, "x" * 300_000)


@pytest.mark.parametrize("write", [_hdf5, _parquet, _safetensors, _text])
def test_every_writer_names_the_file_and_leaves_nothing(tmp_path, write):
    path = tmp_path / "out.bin"
    with largest_file(100_000), pytest.raises(UserError) as caught:
        write(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "free under" in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []
    write(path)
    assert path.stat().st_size > 100_000


def test_hdf5_survives_a_failure_at_any_byte(tmp_path):
    """HDF5 crashes the process when it closes a file that it could not write."""
    rows = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    hdf5.write(tmp_path / "whole.h5", "kind", {"rows": rows}, {})
    size = (tmp_path / "whole.h5").stat().st_size
    for limit in [*range(0, 4000, 333), *range(4000, size, size // 12), size - 1]:
        with largest_file(limit), pytest.raises(UserError, match=r"rows\.h5: it grew larger"):
            hdf5.write(tmp_path / "rows.h5", "kind", {"rows": rows}, {})
        gc.collect()
    hdf5.write(tmp_path / "rows.h5", "kind", {"rows": rows}, {})
    assert (tmp_path / "rows.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "no space"), "out: no space left on its disk: "),
        (OSError(errno.EROFS, "read-only", "in"), "in: its disk may only be read: "),
        (OSError(errno.EACCES, "denied", b"in"), "in: permission denied: "),
        (OSError(errno.ELOOP, "loop", "in"), "in: Too many levels of symbolic links: check this"),
        (RuntimeError("Can't write data (file write failed: errno = 28, …)"), "out: no space"),
        (RuntimeError("IoError(Os { code: 28, kind: StorageFull })"), "out: no space"),
        (UnicodeEncodeError("utf-8", "a\udce4b", 1, 2, "surrogates"), r"a\udce4b: has bytes that"),
    ],
)
def test_errors_of_libraries_are_read(error, line):
    assert str(disk.explained(error, "out")).startswith(line)


@pytest.mark.parametrize(
    "error", [ValueError("x"), ConnectionResetError(104, "reset"), KeyError(1)]
)
def test_other_errors_stay_what_they_are(error):
    assert disk.explained(error, "out") is None
    with pytest.raises(type(error)), disk.writing("out"):
        raise error


def test_a_full_device_is_named_without_its_temporary_name(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"^\S*/out: no space left"), disk.writing(out):
        Path("/dev/full").write_text("x")


def test_a_log_on_a_full_disk_loses_lines_and_nothing_else(tmp_path, capsys):
    (tmp_path / "log").symlink_to("/dev/full")
    logging.setup_logging(tmp_path / "log", "test")
    for _ in range(3):
        logging.LOGGER.info("a line")
    logging.LOGGER.handlers[1].close()
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.count("not all lines are logged") == 1
    assert shown.count("a line") == 3


@pytest.mark.parametrize("name", ["n" * 256 + ".h5", "n" * 252 + ".h5", "a/" * 2200 + "b.h5"])
def test_long_names_are_one_line(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status = main(["cluster", "--embeddings", name, "--output", name])
    shown = capsys.readouterr().err
    assert status == 2 and len(shown.splitlines()) == 1, shown
    assert ("too long" in shown) == (name != "n" * 252 + ".h5")


def test_a_name_of_255_bytes_is_written(tmp_path):
    path = tmp_path / ("ü" * 125 + ".json")
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_a_missing_key_names_the_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": {"b": "\udce4"}})
    assert read_json(tmp_path / "a.json")["a"]["b"] == "\udce4"
    for use in (lambda value: value["c"], lambda value: value["a"]["c"]):
        with pytest.raises(UserError, match=r"a\.json: lacks 'c'"):
            use(read_json(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match=r"a\.json: expected an object"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")


def test_names_of_any_bytes_without_utf8(tmp_path):
    """In the C locale, without Python's own way out of it."""
    folder = tmp_path / os.fsdecode("grün".encode() + b"\xe4")
    folder.mkdir()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "mlcd", "checkpoint", "inspect", os.fspath(folder)]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert "grün".encode() + rb"\udce4" in done.stderr + done.stdout


def test_helper_processes_are_bounded():
    check_workers(16)
    with pytest.raises(UserError, match=r"^--workers: 100000 processes on \d+ cores; at most"):
        check_workers(100_000)


def test_a_child_that_crashed_is_named_by_its_signal():
    code = f"import os; os.kill(os.getpid(), {signal.SIGSEGV})"
    status = subprocess.run([sys.executable, "-c", code]).returncode
    assert ending(status).startswith("SIGSEGV (a library crashed")
    assert ending(3) == "exit status 3"
