"""The recipe: every setting of a run, its default and its check; one file per section."""
