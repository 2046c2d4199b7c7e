"""How fast a teacher and its student are, beside what the machine could do: `gendistill bench`."""
