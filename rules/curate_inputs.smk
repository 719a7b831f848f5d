# What the rules of curate.smk need to know of a chunk: what holds the columns of its conditions.


def curate_list(wildcards):
    """Return the chunk's list where it holds the columns of curate.where, as an input."""
    is_asked = CONFIG.curate.where and not CURATE_TABLES
    # ancient: a copied list has a new time; its identity tells whether it is another.
    return [ancient(CHUNKS[wildcards.chunk].list)] if is_asked else []


def curate_list_identity(wildcards):
    """Return the identity of the chunk's list where conditions read it."""
    return [file_identity(path) for path in curate_list(wildcards)]


def curate_list_options(wildcards):
    """Return the options that say where the chunk lies in its list, or how tables are joined."""
    return columns_options(wildcards, curate_list(wildcards), CURATE_TABLES)


def columns_options(wildcards, lists, tables):
    """Return the same of columns in `lists` (the chunk's, or none), or in `tables`."""
    if not lists:
        return TAR_KEYS if tables else ""
    chunk = CHUNKS[wildcards.chunk]
    first = chunk.part * CONFIG.prepare.chunk_rows
    return as_options(
        {"list_rows": f"{first}:{first + chunk.rows}", "url_column": CONFIG.prepare.url_column}
    )
