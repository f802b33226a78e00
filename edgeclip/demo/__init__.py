"""A small local web page: a camera or a file, prompts typed beside it, boxes drawn live.

with edgeclip.load("nano") as model:
    edgeclip.demo.serve(model)  # until Ctrl-C
"""

from edgeclip.demo.server import Demo, serve

__all__ = ["Demo", "serve"]
