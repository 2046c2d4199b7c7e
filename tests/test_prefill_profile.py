"""What benchmarks/prefill_profile.py says of a trace."""

from prefill_profile import Kernel, Marks, table


def test_kernels_and_what_lies_before_them():
    trace = [Kernel("b", 1030.0, 1050.0), Kernel("a", 1000.0, 1010.0), Kernel("b", 1012.0, 1020.0)]
    beside = Kernel("c", 1040.0, 1060.0)  # of another stream: nothing lies before it
    first, *rest = table([*trace, beside])
    assert first == "4 kernels 0.06, between them 0.01, of 0.06"
    assert [line.split() for line in rest] == [
        ["28.0", "us", "12.0", "before", "x2", "b"],
        ["20.0", "us", "0.0", "before", "x1", "c"],
        ["10.0", "us", "0.0", "before", "x1", "a"],
    ]


def test_what_follows_the_graph_is_the_rest_of_what_is_waited_for():
    assert round(Marks(wall=9.0, host=1.0, graph=7.5).behind, 6) == 0.5
