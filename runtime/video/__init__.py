"""Streams: frames from cameras, files and networks, detected, tracked, drawn and written."""
