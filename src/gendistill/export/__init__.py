"""A student as a folder of its own: loads where gendistill is not installed, and says in its card what it is."""
