"""Prefill and decoding for any Hugging Face causal model; knows nothing of evaluation."""
