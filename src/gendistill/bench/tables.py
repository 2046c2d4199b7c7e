"""Rows of the sweep as a table, and as a picture."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

HEADER = (
    "model", "form", "context", "batch", "first ms", "of limit", "ms a token", "of limit", "tokens/s", "peak GiB",
    "cache MiB",
)  # fmt: skip


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """Cells of the table, a line for each row."""
    lines = []
    for row in rows:
        line = [row["model"], row["form"], f"{row['context']:,}", str(row["batch"])]
        line += [_ms(row, "first_median"), _share(row, "share_of_limit_first")]
        line += [_ms(row, "token_median"), _share(row, "share_of_limit_token")]
        line.append(row["error"] or (f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""))
        line.append("" if row["peak"] is None else f"{row['peak'] / 2**30:.2f}")
        line.append("" if row["cache"] is None else f"{row['cache'] / 2**20:,.1f}")
        lines.append(line)
    return lines


def _ms(row: dict, key: str) -> str:
    return f"{1000 * row[key]:.2f}" if key in row else ""


def _share(row: dict, key: str) -> str:
    return f"{100 * row[key]:.0f} %" if key in row else ""


def _short(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"


def plot(rows: Sequence[dict], path: Path) -> bool:
    """Time to the first token and for each further one over the context, at batch 1, with the limits dotted.

    Returns:
        False if batch 1 was not measured, and there is nothing to plot.
    """
    if not any(row["batch"] == 1 and row.get("token") for row in rows):
        return False
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gendistill"  # equal rows draw equal files
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    # Told apart by marker as well as by colour.
    styles = {"teacher": ("s", "#b35806"), "student": ("o", "#2166ac")}
    for axis, key, limit, label in (
        (axes[0], "first_median", "shortest_first", "time to first token, ms"),
        (axes[1], "token_median", "shortest_token", "time for each further token, ms"),
    ):
        for (name, (marker, color)), (form, line) in product(styles.items(), (("default", "--"), ("best", "-"))):
            alone = [row for row in rows if row["batch"] == 1 and key in row]
            own = [row for row in alone if (row["model"], row["form"]) == (name, form)]
            x = [row["context"] for row in own]
            y = [1000 * row[key] for row in own]
            if not own:
                continue
            axis.plot(x, y, line, marker=marker, color=color, label=f"{name}, {form}")
            if form == "best":
                axis.plot(x, [1000 * row[limit] for row in own], ":", color=color, label=f"{name}, limit")
        axis.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel=label)
        contexts = sorted({row["context"] for row in rows if row["batch"] == 1})
        axis.set_xticks(contexts, map(_short, contexts))
        axis.set_xticks([], minor=True)  # whose labels would overlap
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)
    return True
