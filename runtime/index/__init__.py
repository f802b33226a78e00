"""Retrieval: an index of vectors on the device, bound to the model that made them. Nothing here imports PyTorch."""
