"""One package per stage, of the same name; stages meet in files and never import one another."""
