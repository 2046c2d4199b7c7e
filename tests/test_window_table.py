"""Records of benchmarks/window_table.py, from their files to tables and figures; nothing is asked here."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from figures import window_figures
from window_questions import Questions, named
from window_report import read_models, write_report
from window_table import Configuration, answered, ask, build, describe, stored, trained
from window_table import machine as machine_of

from gendistill.embedded import teacher_folder
from gendistill.evaluate.items import load_items
from gendistill.evaluate.ranking import candidate_ids, render_prompts
from gendistill.models.conversion import weights_sha256
from gendistill.models.cost import expected_cache_bytes
from gendistill.models.families import student_config
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.recipe.evaluation import make_task
from small_models import make_student, make_teacher

TEACHER = make_teacher("qwen2").config
TEACHER.max_position_embeddings = 2048  # as many as the windows need
PLACEMENT = {"layers": [1], "method": "beam", "settings": {}, "cost": {"seconds": 90.0}, "device": "cpu", "dtype": "x"}
RIGHT = {"teacher": "1111111100", "beam7-window-512": "1111110000", "beam7-window-1024": "1111111000"}
TASKS = ("gsm8k", "needle_single_8192", "recall_full_4096")


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for name, right in RIGHT.items():
        window = None if name == "teacher" else int(name.rsplit("-", 1)[1])
        kind = Configuration(name, (1,), window and "window", window)
        header = describe(TEACHER, kind, {"beam7": PLACEMENT})
        header |= {"teacher": "tiny", "questions": dict.fromkeys(TASKS, "x"), "seed": 0} | machine_of("cpu")
        items = [
            {"task": task, "index": i, "strict": one == "1", "flexible": True, "parsed": True, "tokens": 3}
            for task in TASKS
            for i, one in enumerate(right)
        ]
        text = "".join(json.dumps(line) + "\n" for line in [header, *items])
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_report_counts_and_compares(records, tmp_path):
    results = tmp_path / "results"
    write_report(records, results)
    rows = json.loads((results / "table.json").read_text())["configurations"]
    assert list(rows) == list(RIGHT)
    score = rows["beam7-window-512"]["tasks"]["gsm8k"]
    assert (score["strict"]["right"], score["strict"]["retention"]) == (6, 0.75)
    low, high = score["strict"]["retention_interval"]
    assert 0 < low < 0.75 < high <= 1
    assert score["flexible"]["retention"] == 1
    assert "75.0 [" in (results / "table.md").read_text()
    assert (results / "retention.svg").stat().st_size and (results / "retention.png").stat().st_size
    figures = {name: figure["value"] for name, figure in window_figures(results).items()}
    assert figures["window_untrained_retention_recall_4k"] == 0.875  # of the wider window
    assert figures["window_untrained_retention_needle_8k"] == 0.75
    assert figures["placement_minutes_7_of_28"] == 1.5


def test_cache_saving_is_the_students_own():
    kind = Configuration("beam7-window-64", (1,), "window", 64)
    config = student_config(TEACHER, [1], mixer="window", window=64, sinks=4)
    found = describe(TEACHER, kind, {"beam7": PLACEMENT})["cache_bytes"]
    assert found == {str(n): expected_cache_bytes(config, n, batch=1, size=2) for n in (32768, 131072)}


def test_names_that_are_not_known_are_told():
    assert named(["b", "a"], {"a": 1, "b": 2, "c": 3}, "--tasks") == ["b", "a"]
    assert named(None, {"a": 1, "b": 2}, "--tasks") == ["a", "b"]
    with pytest.raises(SystemExit, match="--tasks: no d, e; there are a, b"):
        named(["a", "d", "e"], {"a": 1, "b": 2}, "--tasks")


def test_records_of_other_questions_are_not_continued(records):
    path = records / "teacher.jsonl.gz"
    lines = stored(path, {"teacher": "tiny"})
    assert len(lines) == 1 + len(TASKS) * 10
    with pytest.raises(SystemExit, match="another teacher"):
        stored(path, {"teacher": "large"})
    known, other = (Questions("gsm8k", None, [], prompts, []) for prompts in ([[1, 2]], [[1, 3]]))
    digests = {"gsm8k": known.digest}
    assert answered(path, digests, known)
    assert not answered(path, digests, replace(known, name="humaneval"))
    with pytest.raises(SystemExit, match="other questions called gsm8k"):
        answered(path, digests, other)


def test_students_that_were_asked_other_questions_are_not_compared(records):
    path = records / "beam7-window-512.jsonl.gz"
    header, *items = gzip.decompress(path.read_bytes()).decode().splitlines()
    header = json.loads(header)
    header["questions"]["gsm8k"] = "y"
    path.write_bytes(gzip.compress("\n".join([json.dumps(header), *items]).encode()))
    with pytest.raises(SystemExit, match="beam7-window-512 was asked other questions than the teacher: gsm8k"):
        read_models(records)


def test_a_trained_student_is_described_by_its_folder(tmp_path):
    student = make_student("qwen2", keep=(1,), window=16, sinks=4)
    student.save_pretrained(tmp_path / "student")
    (found,) = trained([f"K1={tmp_path / 'student'}"], True)
    assert (found.name, found.layers, found.mixer, found.window) == ("K1", (1,), "kda", 16)
    sizes = describe(TEACHER, found, {})["cache_bytes"]
    assert sizes == {str(n): expected_cache_bytes(student.config, n, batch=1, size=2) for n in (32768, 131072)}
    assert describe(TEACHER, found, {})["weights"] == weights_sha256(tmp_path / "student")  # another is another
    (alone,) = trained([f"K1={tmp_path / 'student'}"], False)
    assert (alone.name, alone.window_is_on) == ("K1-without_window", False)
    (wide,) = trained([f"K1={tmp_path / 'student'}"], True, window=36)
    assert (wide.name, wide.window) == ("K1-window-36", 36)
    assert describe(TEACHER, wide, {})["cache_bytes"]["131072"] > sizes["131072"]
    ids = torch.arange(40)[None]
    built = (build(make_teacher("qwen2"), each, []) for each in (found, alone, wide))
    on, off, seen = (model(input_ids=ids).logits for model in built)
    assert torch.equal(on, student.eval()(input_ids=ids).logits) and not torch.equal(on, off)
    torch.testing.assert_close(seen, make_teacher("qwen2")(input_ids=ids).logits)  # all 40 tokens are in its window


def test_options_are_ranked_beside_the_replies():
    model = load_model(str(teacher_folder()), torch.float32, "cpu")
    tokenizer = load_tokenizer(str(teacher_folder()), model.config.vocab_size)
    task = make_task(kind="multiple_choice", path="embedded:choice", items=12, max_new_tokens=4)
    items = load_items("arc_easy", task, 0, tokenizer)
    prompts = render_prompts(tokenizer, items)
    seconds = {}
    questions = Questions("arc_easy", task, items, prompts, candidate_ids(tokenizer, items))
    records = ask(model, tokenizer, questions, seconds, "x")
    assert len(records) == 12 and "arc_easy" in seconds
    # The embedded teacher knows these, and says the letter that it ranks first.
    assert sum(record["ranked"] for record in records) > 9
    assert sum(record["letter"] == record["ranked_letter"] for record in records) > 9
