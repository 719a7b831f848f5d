"""Tests on a real Slurm cluster: run them by `make test-slurm`; elsewhere they are skipped."""

from __future__ import annotations

import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cluster import Cluster
from project import STAGES, Project, SnakemakeRun, scontrol, wait_for

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="needs the Slurm test cluster: make test-slurm")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(1200, func_only=True))
            if Cluster.here() is None:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def cluster():
    """The running cluster, its nodes all idle at the session's start."""
    return Cluster.here()


class Site:
    """A web server of images that can be slow, or out of order."""

    def __init__(self, folder: Path) -> None:
        self.delay = 0.0
        self.broken = False
        self.asked = 0
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                site.asked += 1
                time.sleep(site.delay)
                if site.broken:
                    self.send_error(503)
                else:
                    super().do_GET()

            def log_message(self, *arguments):
                pass

        self.folder = folder
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="session")
def _site(tmp_path_factory):
    served = Site(tmp_path_factory.mktemp("site"))
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def site(_site):
    """The web server, in order and quick at each test's start and end."""
    _site.asked = 0
    yield _site
    _site.delay, _site.broken = 0.0, False


@pytest.fixture(scope="session")
def undisturbed(cluster, _site, tmp_path_factory):
    """A project that has run on this machine, without Slurm, up to training on two ranks."""
    project = Project(tmp_path_factory.mktemp("undisturbed") / "project")
    project.write_images(_site.url, _site.folder)
    # As many threads as on the cluster: on a CPU they move the last bit of some features.
    threads = [f"{stage}=1" for stage in ("embed", "cluster", "label")]
    done = project.snakemake("--cores", "2", "--until", "train", "--set-threads", *threads)
    assert done.returncode == 0, done.stdout[-3000:]
    assert all(project.hashes(stage) for stage in STAGES)
    return project


@pytest.fixture
def again(undisturbed, cluster, tmp_path, monkeypatch):
    """A function: a stage → a copy of the undisturbed project that is not done from there on
    (None: nothing is undone).

    When the test is over its heads and jobs are ended and all nodes work again.
    """
    runs: list[SnakemakeRun] = []
    start = Project.start

    def remembered(self, *options, **more):
        runs.append(start(self, *options, **more))
        return runs[-1]

    monkeypatch.setattr(Project, "start", remembered)
    yield lambda stage: undisturbed.copy(tmp_path / f"from-{stage}", stage)
    for snakemake in runs:
        snakemake.end()
    cluster.settle()
    wait_for(cluster.idle, "idle nodes", 60)
    assert scontrol("ping")
