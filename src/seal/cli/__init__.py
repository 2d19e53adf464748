"""The ``seal`` command."""

from seal.cli.main import main

__all__ = ["main"]
