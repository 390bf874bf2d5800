"""The version of the package, once: pyproject, the command line, reports and records read it here."""

__version__ = "0.2.0"
