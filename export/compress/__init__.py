"""Compression under an accuracy budget: which layers may lose how many bits, and what that buys on the target."""
