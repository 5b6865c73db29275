"""The command line: reads arguments, prints, sets the exit code."""

from steadytune.cli.app import main

__all__ = ["main"]
