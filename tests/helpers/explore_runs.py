"""A small run for `mlcd explore`: images, captions of strangers, embeddings, labels."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np

from helpers import tiny_clip
from helpers.builders import embeddings_file, image_store, jpeg, set_attributes, unit
from mlcd.commands.explore.answers import Answers
from mlcd.commands.explore.encoder import QueryEncoder
from mlcd.commands.explore.images import Thumbnails
from mlcd.commands.explore.index import Index, open_index
from mlcd.commands.explore.runs import Run
from mlcd.commands.explore.server import Server
from mlcd.data import hdf5
from mlcd.data.decode import decode
from mlcd.models.frozen import load

CHUNKS, ROWS, K, L = ("a-00000", "a-00001", "b-00000"), 20, 7, 3
N = len(CHUNKS) * ROWS
#: What a stranger may write into a caption.
HOSTILE = "<img src=x onerror=alert(1)><script>alert('x')</script> \"&amp; {{ 7 * 7 }} zebra"


class ExploreRun:
    """Its files below `results`; `rows` float32 [N, d], `label` [N, L], `centers`, `captions`."""

    def __init__(self, results: Path, *, identity: dict[str, object] | None = None) -> None:
        self.results = results
        results.mkdir(parents=True)
        self.images = [jpeg(i) for i in range(N)]
        # The last image of each chunk is the chunk's first once more.
        for chunk in range(len(CHUNKS)):
            self.images[(chunk + 1) * ROWS - 1] = self.images[chunk * ROWS]
        self.captions = [f"image {i} of a {('cat', 'dog', 'red bus')[i % 3]}" for i in range(N)]
        self.captions[0] = HOSTILE
        if identity is None:
            encoder = load(tiny_clip.register(results))
            pixels = np.stack([encoder.preprocess(decode(data, max_pixels=10**6)).numpy()
                               for data in self.images])  # fmt: skip
            import torch

            self.rows = encoder.encode_images(torch.from_numpy(pixels)).numpy()
            identity = encoder.identity
        else:
            self.rows = unit(np.random.default_rng(3).standard_normal((N, 16))).astype(np.float32)
            for chunk in range(len(CHUNKS)):
                self.rows[(chunk + 1) * ROWS - 1] = self.rows[chunk * ROWS]
        self.rows = unit(self.rows.astype(np.float16).astype(np.float32)).astype(np.float32)
        # The last center is the first once more, which wins the tie: its cluster is empty.
        self.centers = unit(self.rows[: K * 8 : 8]).astype(np.float32)
        self.centers[-1] = self.centers[0]
        cosine = self.rows @ self.centers.T
        self.label = np.argsort(-cosine, axis=1, kind="stable")[:, :L].astype(np.int32)
        self.similarity = np.take_along_axis(cosine, self.label, axis=1).astype(np.float16)
        self.identity = json.dumps(identity)
        self._write()

    def _write(self) -> None:
        centroids = self.results / "clusters" / "centroids.h5"
        hdf5.write(
            centroids, "centroids",
            {"centroid": self.centers, "size": np.ones(K, np.int64), "objective": np.zeros(1),
             "empty": np.zeros(1, np.int64)},
            {"model": self.identity, "embeddings": "[]", "section": "{}"},
        )  # fmt: skip
        for number, chunk in enumerate(CHUNKS):
            part = slice(number * ROWS, (number + 1) * ROWS)
            manifest = image_store(
                self.results / "images" / chunk, self.images[part], captions=self.captions[part]
            )
            path = self.results / "embeddings" / f"{chunk}.h5"
            embeddings = embeddings_file(path, self.rows[part], manifest=manifest)
            set_attributes(embeddings, model=self.identity)
            hdf5.write(
                self.results / "labels" / f"{chunk}.h5", "labels",
                {"label": self.label[part], "similarity": self.similarity[part],
                 "gap": self.similarity[part, -1]},
                {"chunk": chunk, "num_classes": K, "embeddings": hdf5.fingerprint(embeddings),
                 "centroids": hdf5.fingerprint(centroids), "section": "{}"},
            )  # fmt: skip

    def members(self, cluster: int) -> np.ndarray:
        """Return the images of a cluster, nearest first, ties by number; by the plain way."""
        mine = np.flatnonzero(self.label[:, 0] == cluster)
        return mine[np.lexsort((mine, -self.similarity[mine, 0].astype(np.float32)))]


#: What embeddings are of, where no encoder is to be loaded.
NO_ENCODER: dict[str, object] = {"name": "test", "dim": 16}


def opened(results: Path, folder: Path) -> tuple[Run, Index, Answers, Thumbnails]:
    """Open all that the server needs, with the index below `folder`."""
    run = Run(results)
    index = open_index(run, folder, threads=1)
    encoder = QueryEncoder(run, None, device="cpu", threads=1, max_pixels=10**6)
    return run, index, Answers(run, index, encoder), Thumbnails(run, index, 10**6)


@contextmanager
def served(results: Path, folder: Path) -> Iterator[Server]:
    """Serve a run on a port of its own until the block ends."""
    _, index, answers, thumbnails = opened(results, folder)
    server = Server(answers, thumbnails, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        index.close()


def ask(
    server: Server, path: str, *, method: str = "GET", body: bytes | None = None,
    token: str | None = None, **headers: str,
) -> tuple[HTTPResponse, bytes]:  # fmt: skip
    """Ask for a path below the token; return the answer and its body."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        token = server.token if token is None else token
        connection.request(method, f"/{token}/{path}", body, names)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()
