# What jobs ask of a cluster: memory and time as functions of the chunk's rows and of the attempt.
#
# A job that ran out of memory or time is tried again with more (profiles: retries); the profile's
# `resources` cap both at what its partition offers. Every stage resumes from its saved state, so
# that an attempt cut off by the time limit is not lost. None of this makes a result stale.


def memory(fixed_mb, row_bytes=0, thread_mb=0):
    """Return mem_mb: `fixed_mb`, bytes per row of the chunk, MB per thread; times the attempt."""

    def needed(wildcards, attempt, threads):
        rows = CHUNKS[wildcards.chunk].rows
        return attempt * (fixed_mb + rows * row_bytes // 1_000_000 + threads * thread_mb)

    return needed


def memory_for_all(fixed_mb, row_bytes):
    """Return mem_mb: `fixed_mb` and bytes per row of all chunks; times the attempt."""
    rows = sum(chunk.rows for chunk in CHUNKS.values())
    return lambda wildcards, attempt: attempt * (fixed_mb + rows * row_bytes // 1_000_000)


def memory_for_centers(stage_mb, kilobytes):
    """Return mem_mb: `stage_mb` and so many kilobytes per center; half as much more per attempt.

    The centers are as many as the wildcard k says (in an ablation), else cluster.k.
    """

    def needed(wildcards, attempt):
        k = int(getattr(wildcards, "k", CONFIG.cluster.k))
        return int((stage_mb + k * kilobytes // 1000) * (1 + attempt) / 2)

    return needed


def minutes(fixed, rows_per_second, by_threads=False):
    """Return runtime: `fixed` minutes and the chunk's rows at a rate, of one thread or of the job.

    Times the attempt; the rate is a slow one, since a time limit is no estimate.
    """

    def needed(wildcards, attempt, threads):
        rate = rows_per_second * (threads if by_threads else 1)
        return attempt * (fixed + math.ceil(CHUNKS[wildcards.chunk].rows / rate / 60))

    return needed


def label_minutes(wildcards, input, attempt, threads):
    """Return runtime of a chunk's labels: of regions there are up to `regions.most` per image.

    Exact search on a CPU: 2 · 1,024 · K operations per row, at a slow 10 GFLOP/s per thread.
    """
    rows = CONFIG.regions.most if input.embeddings in REGIONS else 1
    rate = 1e10 / (2048 * CONFIG.cluster.k * rows)
    return minutes(15, rows_per_second=rate, by_threads=True)(wildcards, attempt, threads)


def images_known(dataset, *sides):
    """Return the images of a data set on these sides; 0 if the registry does not know it."""
    return sum(registry.registry().get(dataset, {}).get(side, 0) for side in sides)


def rows_to_score():
    """Return the train and test images of each data set, 0 if the registry does not know it."""
    return [images_known(name, "train", "test") for name in DATASETS]


def features_minutes(wildcards, attempt):
    """Return runtime of a set's features: four hours, and a minute for each 6,000 images.

    A job that is cut off resumes.
    """
    return attempt * (240 + images_known(wildcards.dataset, "train", "test") // 6000)


def epochs_minutes(*datasets):
    """Return the minutes of fine-tuning on some data sets: one for each 6,000 images of an epoch."""
    images = sum(images_known(name, "train") for name in datasets)
    return CONFIG.evaluate.finetune_epochs * images // 6000


def finetune_minutes(wildcards, attempt):
    """Return runtime of fine-tuning on a set: four hours, and :func:`epochs_minutes`.

    On a GPU; a job that is cut off resumes.
    """
    return attempt * (240 + epochs_minutes(wildcards.dataset))


def scores_memory(wildcards, attempt):
    """Return mem_mb of scoring: 8 GB, and four copies of the largest set, 2,048 floats per row."""
    return attempt * (8000 + max(rows_to_score(), default=0) * 4 * 4 * 2048 // 1_000_000)


def scores_minutes(wildcards, attempt):
    """Return runtime of scoring all sets in turn: four hours, and a minute for each 2,000 images.

    On a GPU: profiles without one set it.
    """
    return attempt * (240 + sum(rows_to_score()) // 2000)


def cell_minutes(wildcards, attempt):
    """Return runtime of all scores of a training of an ablation, fine-tuning included."""
    tuned = [name for name, dataset in DATASETS.items() if "finetune" in dataset.tasks]
    return scores_minutes(wildcards, attempt) + attempt * epochs_minutes(*tuned)
