"""Pictures in, the tower's `pixels` out: decode, orient, resize, crop, normalise. numpy and Pillow only."""

from edgeclip.runtime.images.decode import DecodeLimits, Picture, decode
from edgeclip.runtime.images.preprocess import Preprocessor, bytes_of, preprocess

__all__ = ["DecodeLimits", "Picture", "Preprocessor", "bytes_of", "decode", "preprocess"]
