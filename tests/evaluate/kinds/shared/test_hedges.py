from dataclasses import replace

import pytest

from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.item import Item
from gendistill.evaluate.kinds.shared.hedges import committed

FRANCE = Item(0, "short_answer", "What is the capital of France?", ("Paris", "Rome"), (0,), ("Paris", "巴黎", "París"))
OPTIONS = Item(0, "multiple_choice", "?", ("A", "B", "C"), (1,), ("sky",), ("cage", "sky", "desert"))
SUM = Item(0, "last_number", "How many?", (), (), ("18",))

# What is held possible or unsure in five languages, with the answer in the place of "...".
HEDGES = {
    "en": [
        "It could be ...",
        "It could be ..., but I am not sure.",
        "It might be ....",
        "It may well be ....",
        "Maybe ...",
        "Possibly ....",
        "Perhaps it is ....",
        "The answer could be ....",
        "I guess ...",
        "I guess it's ....",
        "My best guess is ....",
        "..., maybe.",
        "..., I guess",
        "..., but I'm not sure.",
        "... (I am not certain)",
        "I'm not sure, but I think it is ....",
        "The answer is .... I'm not sure, though.",
        "...\nBut I am not entirely sure.",
    ],
    "de": ["Vielleicht ...", "Möglicherweise ist es ....", "Es könnte ... sein.", "..., aber ich bin nicht sicher."],
    "es": ["Quizás ...", "Tal vez sea ....", "Podría ser ....", "La respuesta es ..., pero no estoy seguro."],
    "fr": ["Peut-être ...", "C'est peut-être ....", "Cela pourrait être ....", "..., mais je ne suis pas sûr."],
    "zh": ["可能是...。", "也许是...", "或许...", "答案是...，但我不确定。", "我猜是...。"],
}
BELIEFS = [
    "I believe the answer is ....",
    "The answer is probably ....",
    "The answer is most likely ....",
    "The answer is ....\nIt could be made clearer.",
    "It could be something else, but the answer is ....",
    "The answer is ..., though others may be named.",
    "The answer is ....\nPerhaps you want to know more.",
    "Ich glaube, die Antwort ist ....",
    "Je pense que la réponse est ....",
    "Creo que la respuesta es ....",
    "我认为答案是...。",
    "最可能的答案是...。",
]


def read(item, reply):
    (grades,) = grade([item], [reply])
    return grades


@pytest.mark.parametrize(
    ("item", "right"), [(FRANCE, "Paris"), (OPTIONS, "B"), (SUM, "18")], ids=lambda each: str(each)[:2]
)
@pytest.mark.parametrize("hedge", [hedge for hedges in HEDGES.values() for hedge in hedges])
def test_what_is_only_held_possible_is_strictly_no_answer(item, right, hedge):
    answer = read(item, hedge.replace("...", right, 1)).strict
    assert not answer.correct
    assert answer.parsed is None


@pytest.mark.parametrize(
    ("item", "right"), [(FRANCE, "Paris"), (OPTIONS, "B"), (SUM, "18")], ids=lambda each: str(each)[:2]
)
@pytest.mark.parametrize("belief", BELIEFS)
def test_what_is_believed_is_an_answer(item, right, belief):
    assert read(item, belief.replace("...", right, 1)).strict.correct


@pytest.mark.parametrize("hedge", [hedge for hedges in HEDGES.values() for hedge in hedges])
def test_a_patient_person_takes_the_one_answer_that_is_held_possible(hedge):
    flexibly = [read(item, hedge.replace("...", right, 1)).flexible for item, right in ((FRANCE, "Paris"), (SUM, "18"))]
    assert sum(answer.correct for answer in flexibly) >= 1


@pytest.mark.parametrize(
    "reply", ["It could be Paris or Lyon.", "Maybe Paris, maybe Rome.", "Perhaps Paris, perhaps Lyon"]
)
def test_several_possible_answers_are_none(reply):
    assert not read(FRANCE, reply).strict.correct
    assert not read(FRANCE, reply).flexible.correct


def test_a_belief_in_words_of_its_own_is_an_answer_where_it_is_not_a_letter():
    for item, right in ((FRANCE, "Paris"), (SUM, "18")):
        assert read(item, f"I think it is {right}.").strict.correct
    # A letter is strictly one where it opens the reply or is called the answer, and flexibly one here too.
    believed = read(OPTIONS, "I think it is B.")
    assert (believed.strict.parsed, believed.flexible.parsed) == (None, "B")


def test_where_possible_things_are_asked_for_they_are_answers():
    asked = Item(0, "short_answer", "Where might you find a pen?", ("pocket", "sea"), (0,), ("pocket",))
    assert read(asked, "It could be in a pocket.").strict.correct
    assert not read(asked, "In a pocket, but I am not sure.").strict.correct


@pytest.mark.parametrize(
    "option", ["Fish may be harmed", "it could be worse", "perhaps", "I am not sure", "可能会下雨"]
)
def test_words_of_an_answer_hedge_nothing(option):
    choice = replace(OPTIONS, choices=("cage", option, "desert"), answers=(option,))
    short = replace(FRANCE, answers=(option,), candidates=(option, "Rome"))
    for reply in (option, f"B. {option}", f"The answer is B. {option}.", "B"):
        assert read(choice, reply).strict.correct
    for reply in (option, f"The answer is: {option}"):
        assert read(short, reply).strict.correct


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Paris",
        "The answer may be written as 3.5.",
        "A May bee.",
        "Perhaps surprisingly, it is Paris.",
        "Perhaps surprisingly, it is Paris.",
        "B. It cannot be A.",
    ],
)
def test_nothing_else_is_taken_out(reply):
    assert committed(reply) == reply


def test_long_replies_full_of_hedges_are_read_in_time():
    for part in ("maybe ", "I am not sure. ", "it could be, ", "可能", "maybe. "):
        assert not committed(part * 20_000).strip()
