"""One module a checkpoint format. Each offers `matches(folder) -> bool` and `load(folder, request) -> Source`."""
