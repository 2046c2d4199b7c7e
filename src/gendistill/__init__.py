"""gendistill: turn a pretrained Transformer language model into a fast hybrid that still answers."""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str):
    # Only when it is asked for: importing torch takes a second, and every room may import this one.
    if name == "generate":
        return import_module("gendistill.inference.ids").generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
