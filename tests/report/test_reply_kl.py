"""Reply-KL as a table and as curves: means over spans count tokens, and what no reply reaches is left out."""

import pytest

from gendistill.report.reply_kl import REPLY_KL_HEADER, plot_reply_kl, reply_kl_cells, smoothed

# Four replies: of 1, 3, 3 and 20 tokens, of which the last is at its limit.
FOUND = dict(
    mean=0.25,
    by_position=[0.1, 0.2, 0.5, *[0.4] * 17],
    tokens_by_position=[4, 3, 3, *[1] * 17],
    counts=dict(written=4, ended_early=1, at_limit=1, looping=0, tokens=27),
)


def test_a_row_for_each_student():
    (cells,) = reply_kl_cells({"3-last": FOUND})
    row = dict(zip(REPLY_KL_HEADER, cells, strict=True))
    assert row["student"] == "3-last"
    assert row["all tokens"] == "0.2500"
    assert row["1"] == "0.1000"
    assert row["2-4"] == f"{(3 * 0.2 + 3 * 0.5 + 0.4) / 7:.4f}"
    assert row["5-16"] == row["17-64"] == "0.4000"
    assert row["65-256"] == "–"
    assert (row["tokens"], row["early"], row["at limit"], row["looping"]) == ("7", "25", "25", "0")


def test_curves_double_their_spans(tmp_path):
    positions, means = smoothed(FOUND)
    assert positions == [1, 2, 4, 8, 16, 20]
    assert means == pytest.approx([0.1, 0.2, (3 * 0.5 + 0.4) / 4, 0.4, 0.4, 0.4])
    same = FOUND | {"by_position": [0.0] * 20}  # as of the teacher itself, which a logarithm does not take
    plot_reply_kl(tmp_path / "a.svg", {"teacher-like": same, "3-last": FOUND})
    plot_reply_kl(tmp_path / "b.svg", {"teacher-like": same, "3-last": FOUND})
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "position in the reply" in drawn
    assert "3-last" in drawn
