"""The steps of a run over its folder; each takes up what the one before left."""
