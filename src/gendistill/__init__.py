"""gendistill: turn a pretrained Transformer language model into a fast hybrid that still answers."""

__version__ = "0.1.0"
