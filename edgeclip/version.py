"""The version of this package, for modules that must not import its face."""

__version__ = "0.1.0"
