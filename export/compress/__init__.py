"""Compression under an accuracy budget: which layers may lose how many bits, and what that buys on the target.

`api.compress_bundle` is the way in. `target.measure_bundle` times a bundle's variants on a device that has neither PyTorch nor onnx.
"""
