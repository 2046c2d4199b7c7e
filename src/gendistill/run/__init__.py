"""A run over its folder: one file per step; each takes up what the one before left."""
