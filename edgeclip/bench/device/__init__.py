"""The device: what it is (`describe_device`) and how it was during a run (`Sampler`). What cannot be measured says why."""

from edgeclip.bench.device.describing import describe_device
from edgeclip.bench.device.sampler import Sampler

__all__ = ["Sampler", "describe_device"]
