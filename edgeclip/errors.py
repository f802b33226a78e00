"""The closed list of errors that edgeclip raises on purpose. Each message is one line: where, wanted, came, what to do."""

from __future__ import annotations


class EdgeClipError(Exception):
    """Base of every deliberate error. The command line prints it as one line and exits with `exit_code`."""

    exit_code = 2


class InputError(EdgeClipError):
    """A picture, text, label or argument that cannot be used."""


class BundleError(EdgeClipError):
    """A bundle that is missing, damaged, tampered with or from a newer format."""


class SourceError(EdgeClipError):
    """A source checkpoint that is missing, damaged, unknown or contradicts its own config."""


class EngineError(EdgeClipError):
    """An inference engine that is not installed, cannot open a graph or fell back silently."""


class MissingExtraError(EdgeClipError):
    """A feature whose optional dependency is not installed; the message holds the install command."""


class TrainingError(EdgeClipError):
    """A recipe, data set or training run that cannot go on."""


class CheckFailed(EdgeClipError):
    """A check ran and fell short: fidelity below tolerance, a damaged file found by verify."""

    exit_code = 1
