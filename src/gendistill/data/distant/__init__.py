"""Conversations whose answers lie thousands of tokens back, made of the user's own text; see `make`."""
