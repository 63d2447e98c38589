"""``python -m bench plot``: pictures and tables of what ``python -m bench`` measured."""

from bench.plot.command import main

__all__ = ["main"]
