"""A template that prints today's date is told the day of the run, on whatever day it is rendered."""

from datetime import date, datetime

import numpy as np
import pytest
import transformers.utils.chat_template_utils as rendering
from rich.console import Console

from cli_tools import RECIPE
from gendistill.data import dates
from gendistill.data.chat import encode_conversation, render_prompt
from gendistill.data.dataset import prepare
from gendistill.data.dates import date_of, freeze_date
from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.ranking import render_prompts
from gendistill.recipe.data import Source, Synthesis
from gendistill.recipe.evaluation import make_task
from gendistill.recipe.loading import parse_recipe
from gendistill.run.folder import RunFolder
from gendistill.run.run import Run
from gendistill.synthesize.prompts import all_prompts

OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + OPENING
PLAIN = "<|im_start|>system\nAlways the same.<|im_end|>\n" + TURNS
# Ways in which families write it.
DATED = {
    "in place": "<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + TURNS,
    "if there is a clock": (
        "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
        "{% else %}{% set day = '26 Jul 2024' %}{% endif %}<|im_start|>system\nToday: {{ day }}<|im_end|>\n" + TURNS
    ),
    "in a macro": (
        "{% macro opening(form) %}<|im_start|>system\n{{ strftime_now(form) }}<|im_end|>\n{% endmacro %}"
        "{{ opening('%Y-%m-%d') }}" + TURNS
    ),
    "marked": (
        "<|im_start|>system\n{{ strftime_now('%A %j %H:%M') }}<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% endfor %}" + OPENING
    ),
}
ASKED = [{"role": "user", "content": "hi"}]
FIRST, SECOND = date(2026, 3, 1), date(2026, 3, 2)


@pytest.fixture
def clock(monkeypatch):
    """Sets the day that the machine thinks it is."""

    def show(day: date) -> None:
        class Datetime(datetime):
            @classmethod
            def now(cls, *_):
                return datetime(day.year, day.month, day.day, 23, 59)

        class Date(date):
            @classmethod
            def today(cls):
                return day

        monkeypatch.setattr(rendering, "datetime", Datetime)
        monkeypatch.setattr(dates, "date", Date)
        monkeypatch.setattr("gendistill.run.folder.date", Date)
        dates._this_day.cache_clear()  # as in a new process

    yield show
    dates._this_day.cache_clear()


@pytest.fixture
def chats(write_records):
    records = [{"prompt": f"say {number}", "completion": str(number)} for number in range(40)]
    return Source(path=str(write_records("chats.jsonl", records)), prompt="prompt", completion="completion", epochs=9)


def prepared(source, tokenizer, cache):
    return prepare([source], tokenizer, sequence_length=128, tokens=1024, loss_on="completion", seed=0, cache=cache)


@pytest.mark.parametrize("way", DATED)
def test_rows_and_prompts_of_two_days_are_the_same_where_the_day_is_frozen(make_tokenizer, clock, chats, tmp_path, way):
    found = []
    for today in (FIRST, SECOND):
        clock(today)
        tokenizer = make_tokenizer(DATED[way])
        freeze_date(tokenizer, FIRST)
        data = prepared(chats, tokenizer, tmp_path / str(today))
        prompt = render_prompt(tokenizer, ASKED)
        ids, _ = encode_conversation(tokenizer, [*ASKED, {"role": "assistant", "content": "ok"}])
        assert ids[: len(prompt)] == prompt
        found.append((data.key, data[:]["input_ids"], tokenizer.decode(prompt)))
    (key, rows, prompt), (next_key, next_rows, next_prompt) = found
    assert key == next_key and np.array_equal(rows, next_rows) and prompt == next_prompt
    assert any(text in prompt for text in ("01 Mar 2026", "2026-03-01", "Sunday 060 00:00"))


@pytest.mark.parametrize("way", DATED)
def test_without_a_run_another_day_is_another_key(make_tokenizer, clock, chats, tmp_path, way):
    keys = []
    for today in (FIRST, SECOND):
        clock(today)
        tokenizer = make_tokenizer(DATED[way])
        assert date_of(tokenizer) == today
        keys.append(prepared(chats, tokenizer, tmp_path).key)
    assert keys[0] != keys[1]


def test_midnight_does_not_change_the_day_of_a_process(make_tokenizer, clock, monkeypatch):
    clock(FIRST)
    tokenizer = make_tokenizer(DATED["in place"])
    prompt = render_prompt(tokenizer, ASKED)
    monkeypatch.setattr(rendering, "datetime", None)  # whoever looks at the clock fails
    monkeypatch.setattr(dates, "date", None)
    assert render_prompt(tokenizer, ASKED) == prompt


def test_a_template_without_a_date_and_plain_text_have_one_key_on_all_days(
    make_tokenizer, clock, chats, write_records, tmp_path
):
    texts = Source(path=str(write_records("texts.jsonl", [{"text": f"hi {n}"} for n in range(300)])), epochs=9)
    for source, template in ((chats, PLAIN), (texts, DATED["in place"])):
        keys = set()
        for today in (FIRST, SECOND):
            clock(today)
            loss_on = "completion" if source is chats else "all"
            settings = dict(sequence_length=128, tokens=256, loss_on=loss_on, seed=0, cache=tmp_path)
            keys.add(prepare([source], make_tokenizer(template), **settings).key)
        assert len(keys) == 1


def test_two_tokenizers_of_one_template_keep_their_days(make_tokenizer):
    first, second = make_tokenizer(DATED["in place"]), make_tokenizer(DATED["in place"])
    freeze_date(first, FIRST)
    freeze_date(second, SECOND)
    for _ in range(2):
        assert "01 Mar 2026" in first.decode(render_prompt(first, ASKED))
        assert "02 Mar 2026" in second.decode(render_prompt(second, ASKED))


def test_a_run_keeps_the_day_it_was_created(clock, tmp_path):
    recipe = parse_recipe(RECIPE, "test")
    clock(FIRST)
    run = Run(recipe, tmp_path / "run", Console(quiet=True))
    assert (tmp_path / "run" / "date.txt").read_text().startswith("2026-03-01 ")
    run.tokenizer.chat_template = DATED["in place"]
    prompt = render_prompt(run.tokenizer, ASKED)
    clock(SECOND)
    resumed = Run(recipe, tmp_path / "run", Console(quiet=True))
    assert date_of(resumed.tokenizer) == FIRST
    resumed.tokenizer.chat_template = DATED["in place"]
    assert render_prompt(resumed.tokenizer, ASKED) == prompt
    other = Run(recipe, tmp_path / "other", Console(quiet=True))
    assert date_of(other.tokenizer) == SECOND


def test_a_run_that_was_killed_between_its_two_first_files_goes_on(clock, tmp_path):
    recipe = parse_recipe(RECIPE, "test")
    clock(FIRST)
    RunFolder(tmp_path, recipe).create()
    (tmp_path / "recipe.yaml").unlink()
    clock(SECOND)
    folder = RunFolder(tmp_path, recipe)
    folder.create()
    assert folder.day == FIRST and (tmp_path / "recipe.yaml").exists()


def test_a_template_that_is_none_is_one_clear_error(make_tokenizer):
    """One changed byte may do it."""
    with pytest.raises(
        UserError, match=r"the chat template is damaged \(line 3: .*\); fetch the tokenizer's files again"
    ):
        render_prompt(make_tokenizer(DATED["in place"].replace(" in ", " im ", 1)), ASKED)


def test_another_day_is_refused(clock, tmp_path):
    """It is as good a date, and prompts would change without a word."""
    clock(FIRST)
    folder = RunFolder(tmp_path, parse_recipe(RECIPE, "test"))
    folder.create()
    written = (tmp_path / "date.txt").read_text()
    (tmp_path / "date.txt").write_text(written.replace("2026-03-01", "2026-03-02"))
    with pytest.raises(UserError, match="should hold the day the run was created"):
        folder.day  # noqa: B018


def test_a_day_that_is_none_is_refused(tmp_path):
    folder = RunFolder(tmp_path, parse_recipe(RECIPE, "test"))
    folder.create()
    (tmp_path / "date.txt").write_text("yesterday\n")
    with pytest.raises(UserError, match="should hold the day the run was created, as 2026-01-31; it holds 'yesterday'"):
        folder.day  # noqa: B018


def test_evaluation_and_synthesis_render_with_the_day_of_the_tokenizer(make_tokenizer, files):
    tokenizer = make_tokenizer(DATED["in place"])
    freeze_date(tokenizer, FIRST)
    items = load_items("choice", make_task(kind="multiple_choice", path=files["choice_test"]), 0, tokenizer)
    prompts = render_prompts(tokenizer, items)
    synthesis = Synthesis(prompts=[dict(kind="multiple_choice", path=files["choice_test"], split=None)])
    prompts += [prompt.ids for prompt in all_prompts(synthesis, tokenizer, 0)]
    assert prompts and all("01 Mar 2026" in tokenizer.decode(ids) for ids in prompts)
