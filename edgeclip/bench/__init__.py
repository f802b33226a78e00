"""Latency of a bundle on this machine: scenarios, stages, device state, reports, comparison. Needs numpy and the runtime."""
