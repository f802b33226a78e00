"""TensorRT and TensorRT-RTX: engines built from a bundle's graphs, proved, kept under a key of this machine, and run.

library.py   the two Python packages behind one face        builder.py   a graph to a plan
profiles.py  the sizes an engine takes                       memory.py    whether a build fits
progress.py  how far it is, how to stop it                   messages.py  what the library says, in one line
flavour.py   which graph for which library                   network.py   what was parsed, and whether it is what was promised
inspect.py   what was built, read back                       prove.py     the golden inputs replayed on the device
record.py    what is known of an engine                      store.py     engines on disk: found, verified, never trusted
api.py       all of it in one call, `build_engines`
"""
