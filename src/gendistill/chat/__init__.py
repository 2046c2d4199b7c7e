"""A conversation with models at the terminal: `conversation` is a model's side of it, `terminal` the person's."""
