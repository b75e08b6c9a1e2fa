"""The command line: parses, makes one library call, prints."""

from edgeshrink.cli.main import main

__all__ = ["main"]
