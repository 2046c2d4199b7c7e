"""matplotlib, set up to draw files that are equal where what they show is."""

from typing import Any


def pyplot_to_files() -> Any:
    """matplotlib.pyplot, without a display; it takes a second to import, which only plots need."""
    import matplotlib

    matplotlib.use("svg")  # before pyplot, which would look for a display
    # Names of shapes in a file are random numbers by default; save with metadata={"Date": None} for the rest.
    matplotlib.rcParams["svg.hashsalt"] = "gendistill"
    # Only now, for it takes up the settings as it is imported.
    from matplotlib import pyplot

    return pyplot
