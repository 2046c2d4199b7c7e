"""A base recipe, and what becomes of it with one setting or another changed: variants, their queue and their table."""
