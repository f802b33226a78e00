"""How queries arrive. A scenario is one file with `run`, and one line in `RUNS`."""
