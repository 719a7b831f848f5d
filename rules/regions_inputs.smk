# What the rules need to know of regions: their files, and what holds a chunk's boxes.

#: Regions of all chunks and their labels; none where the config names no regions.source.
REGIONS = of_chunks("regions/{chunk}.h5") if CONFIG.regions.source else []
REGION_LABELS = of_chunks("regions/labels/{chunk}.h5") if CONFIG.regions.source else []
#: Those that training reads, and all labels of them.
TRAIN_REGIONS = REGIONS if CONFIG.train.regions == "boxes" else []
TRAIN_REGION_LABELS = REGION_LABELS if CONFIG.train.regions == "boxes" else []


def regions_list(wildcards):
    """Return the chunk's list where it holds regions.column, as an input."""
    is_asked = CONFIG.regions.source == "column" and not BOX_TABLES
    # ancient: a copied list has a new time; its identity tells whether it is another.
    return [ancient(CHUNKS[wildcards.chunk].list)] if is_asked else []


def regions_list_identity(wildcards):
    """Return the identity of the chunk's list where boxes are read from it."""
    return [file_identity(path) for path in regions_list(wildcards)]


def regions_list_options(wildcards):
    """Return the options that say where the chunk lies in its list, or how tables are joined."""
    return columns_options(wildcards, regions_list(wildcards), BOX_TABLES)
