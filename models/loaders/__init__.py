"""One module a checkpoint format, one line in `models/sources.py`. Each offers `matches(folder) -> bool`,
`load(folder, name, request) -> Source`, and the names of its weight files: WEIGHTS, SHARDS, PICKLES.
"""
