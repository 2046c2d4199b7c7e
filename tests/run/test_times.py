"""What the parts of a run take."""

import pytest

from gendistill.run import times
from gendistill.run.times import Times


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(times.time, "perf_counter", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


def test_a_part_is_timed_without_those_inside_it(tmp_path, monkeypatch):
    clock, taken = Clock(monkeypatch), Times(tmp_path / "times.jsonl")
    with taken.of("training", "first"):
        clock.passes(1060)
        with taken.of("data", "text"):
            clock.passes(6)
            with taken.of("synthesis", "sums"):
                clock.passes(30)
        clock.passes(3)
        with taken.of("saving", "first"):
            clock.passes(12)
    assert [(line["part"], line["of"], line["seconds"]) for line in taken.lines()] == [
        ("synthesis", "sums", 30.0),
        ("data", "text", 6.0),
        ("saving", "first", 12.0),
        ("training", "first", 1063.0),
    ]
    assert taken.told() == "1,111 seconds in all: training 1,063, synthesis 30, saving 12, data 6"


def test_what_fails_or_was_there_is_no_part_and_the_next_is_timed_all_the_same(tmp_path, monkeypatch):
    clock, taken = Clock(monkeypatch), Times(tmp_path / "times.jsonl")
    assert taken.told() is None
    with taken.of("training", "first"):
        clock.passes(7)
        with pytest.raises(ZeroDivisionError), taken.of("data", "text"):
            clock.passes(20)
            raise ZeroDivisionError
        with taken.of("data", "text"):
            clock.passes(0.04)
    assert [(line["part"], line["seconds"]) for line in taken.lines()] == [("training", 7.0)]


def test_a_damaged_file_stops_nothing(tmp_path, monkeypatch):
    clock, taken = Clock(monkeypatch), Times(tmp_path / "times.jsonl")
    taken.path.write_bytes(b'{"part": "data", "of": "te\xff", "seco')
    with taken.of("training", "first"):
        clock.passes(7)
    assert taken.told() is None and taken.path.read_text().endswith('"seconds": 7.0}\n')


def test_nothing_is_kept_in_the_folder_of_another_process(monkeypatch):
    clock, taken = Clock(monkeypatch), Times(None)
    with taken.of("data", "text"):
        clock.passes(20)
    assert taken.lines() == []
