"""From records to packed, memory-mapped training rows. Knows tokenizers, never models."""
