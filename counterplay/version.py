"""The version of the whole: part of the identity of what it computes."""

__version__ = "0.1.0"
