"""The version of eltlab."""

__version__ = "0.1.0"
