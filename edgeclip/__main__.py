"""`python -m edgeclip`."""

from edgeclip.cli import main

main()
