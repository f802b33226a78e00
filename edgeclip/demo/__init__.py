"""A small local web page: a camera or a file, prompts typed beside it, boxes drawn live."""
