"""Scores any Hugging Face causal model on the same items twice: by ranking candidates and by generating the answer."""
