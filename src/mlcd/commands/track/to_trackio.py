"""Trackio: a SQLite file for each project, on this machine."""

from __future__ import annotations

import contextlib
import io
import os
import shlex

from mlcd.commands.track.target import Target, names


class _Trackio(Target):
    """`TRACKIO_DIR` is kept if it is set, else it is `folder`.

    Always local: `trackio sync` brings a project to a Space. What the file holds is asked of it at
    the start, since the library stores in a thread of its own.
    """

    def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Read when the library is imported.
        os.environ.setdefault("TRACKIO_DIR", str(self.folder))
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            os.environ.pop(name, None)
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self.shipped.clear()
        self.scores.clear()
        for line in SQLiteStorage.get_logs(self.run.project, self.run.name):
            stream = next((name.partition("/")[0] for name in line if "/" in name), None)
            if stream:
                self.note(stream, int(line["step"]))
        # It tells where it writes on standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                self.run.project, self.run.name, config=dict(self.run.config), resume="allow",
                embed=False, auto_log_cpu=False, auto_log_gpu=False,
            )  # fmt: skip

    def ship(self, stream: str, step: int, values: dict[str, float]) -> None:
        self._run.log(names(stream, values.items()), step=step)

    def flush(self) -> bool:
        return False

    def close(self, *, done: bool) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            if trackio.context_vars.current_run.get() is self._run:
                trackio.finish()  # else the library finishes it once more at its end, aloud
            else:
                self._run.finish()

    def where(self) -> str:
        folder = shlex.quote(os.environ["TRACKIO_DIR"])
        return f"TRACKIO_DIR={folder} trackio show --project {shlex.quote(self.run.project)}"


TARGET = _Trackio
