import random
import re
from itertools import islice

import pytest

from gendistill import embedded
from gendistill.embedded import arithmetic, corpus
from gendistill.errors import UserError

EXPRESSION = re.compile(r"(\d+(?: [-+x] \d+)+) = (\d+)")
SOLUTION = re.compile(r"(\d+) ([-+x]) (\d+): (.*?) The answer is (\d+)\.")


def training_texts(count: int) -> list[str]:
    texts = [record["text"] for record in embedded.records("text", seed=3, count=count)]
    for record in embedded.records("chat", seed=3, count=count):
        texts += [message["content"] for message in record["messages"]]
    return texts


def as_pattern(template: str) -> re.Pattern:
    """Matches the template with any word or number in each of its fields."""
    return re.compile(r"\w+".join(map(re.escape, re.split(r"\{\w+\}", template))), re.IGNORECASE)


def value(expression: str) -> int:
    left, *rest = expression.split()
    total = int(left)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        total = arithmetic.Sum(sign, total, int(number)).result
    return total


@pytest.mark.parametrize("name", embedded.NAMES)
def test_records_are_a_function_of_the_seed(name):
    assert list(embedded.records(name, 5, 200)) == list(embedded.records(name, 5, 200))
    assert list(embedded.records(name, 5, 200)) != list(embedded.records(name, 6, 200))
    assert len(list(embedded.records(name, count=17))) == 17


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="text, chat, facts, choice, arithmetic"):
        embedded.records("fact")


def test_each_relation_has_facts_and_phrasings_of_both_kinds():
    assert corpus.relations().keys() == corpus.facts().keys()
    for relation in corpus.relations().values():
        assert len(relation.held_out) >= 2 and len(relation.questions) >= 4 and len(relation.statements) >= 3
        assert not set(relation.held_out) & set(relation.questions)


def test_held_out_phrasings_are_never_trained_on():
    questions = {text.split("\n")[0] for text in training_texts(10_000)}
    sentences = {sentence for text in questions for sentence in re.split(r"(?<=[.:!]) ", text)} | questions
    held_out, trained = set(), set()
    for name, relation in corpus.relations().items():
        for subject in corpus.facts()[name]:
            held_out |= {corpus.fill(template, subject) for template in relation.held_out}
            trained |= {corpus.fill(template, subject) for template in relation.questions}
    assert not sentences & held_out
    assert len(sentences & trained) > 2000, "the comparison itself must find what is there"


def test_held_out_wordings_of_sums_are_never_trained_on():
    text = "\n".join(training_texts(10_000))

    def found(templates: dict) -> list[str]:
        return [wording for wordings in templates.values() for wording in wordings if as_pattern(wording).search(text)]

    assert not found(arithmetic.HELD_OUT_QUESTIONS) and not found(arithmetic.HELD_OUT_STORIES)
    trained = found(arithmetic.QUESTIONS) + found(arithmetic.STORIES)
    assert len(trained) == sum(map(len, [*arithmetic.QUESTIONS.values(), *arithmetic.STORIES.values()]))


def test_held_out_pairs_are_never_trained_on():
    sums = [match for text in training_texts(6000) for match in SOLUTION.findall(text)]
    longer = [(sign, int(left), int(right)) for left, sign, right, *_ in sums if int(left) > 9 or int(right) > 9]
    assert len(longer) > 3000
    assert not [pair for pair in longer if arithmetic.is_held_out(*pair)]
    rng = random.Random(0)
    examined = [arithmetic.draw_sum(rng, held_out=True) for _ in range(300)]
    assert all(arithmetic.is_held_out(task.sign, task.left, task.right) for task in examined)
    assert arithmetic.is_held_out("+", 12, 57) == arithmetic.is_held_out("+", 57, 12)


def test_every_written_step_is_correct():
    rng = random.Random(1)
    for _ in range(3000):
        task = arithmetic.draw_sum(rng, held_out=False)
        left, sign, right, steps, result = SOLUTION.fullmatch(arithmetic.solution(task)).groups()
        assert value(f"{left} {sign} {right}") == int(result) == task.result >= 0
        expressions = EXPRESSION.findall(steps)
        assert all(value(expression) == int(shown) for expression, shown in expressions), steps
        # The digits that the steps arrive at are those of the result.
        units, tens = expressions[0][1], expressions[-1][1]
        assert int(tens) * 10 + int(units) % 10 == task.result, steps


def test_a_question_names_the_numbers_of_its_sum():
    rng = random.Random(2)
    for held_out in (True, False):
        for _ in range(500):
            task = arithmetic.draw_sum(rng, held_out)
            numbers = [int(number) for number in re.findall(r"\d+", arithmetic.question(task, rng, held_out))]
            assert sorted(numbers) == sorted((task.left, task.right))


def test_choices_hold_the_answer_once():
    for item in embedded.records("facts", count=1500):
        assert len(set(item["choices"])) == 4
        assert sum(choice in item["answer"] for choice in item["choices"]) == 1
    for item in embedded.records("choice", count=1500):
        assert len(set(item["choices"])) == 4 and 0 <= item["answer"] < 4
    positions = [item["answer"] for item in embedded.records("choice", count=1000)]
    assert min(positions.count(position) for position in range(4)) > 180


def test_letters_answer_the_listed_question():
    layout = re.compile(r"(?s)(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\nAnswer with the letter\.")
    seen = 0
    for record in embedded.records("chat", count=3000):
        for question, reply in zip(record["messages"][::2], record["messages"][1::2], strict=True):
            if match := layout.fullmatch(question["content"]):
                seen += 1
                choices = list(match.groups()[1:])
                assert corpus.choice_prompt(match[1], choices) == question["content"]
                assert reply["content"] in corpus.LETTERS
    assert seen > 200


@pytest.mark.parametrize(
    ("relation", "subject", "answer"),
    [
        ("capital", "France", "Paris"),
        ("capital", "Australia", "Canberra"),
        ("currency", "Japan", "yen"),
        ("currency", "France", "euro"),
        ("continent", "Kenya", "Africa"),
        ("calling_code", "Germany", "49"),
        ("country_of_capital", "Amsterdam", "Netherlands"),
        ("symbol", "iron", "Fe"),
        ("element_of_symbol", "Fe", "iron"),
        ("atomic_number", "gold", "79"),
        ("state_capital", "Texas", "Austin"),
        ("plural", "wolf", "wolves"),
        ("sides", "hexagon", "6"),
    ],
)
def test_known_facts(relation, subject, answer):
    assert answer in corpus.facts()[relation][subject]


def test_template_marks_exactly_the_assistants_tokens():
    transformers = pytest.importorskip("transformers")
    folder = embedded.Path(embedded.__file__).parent / "model"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the embedded teacher has not been made")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "What is 4 + 58?"},
        {"role": "assistant", "content": "The answer is 62."},
    ]
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    marked = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "Paris<|im_end|>The answer is 62.<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    prompt = tokenizer.apply_chat_template(
        messages[:2], add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    assert tokenizer.apply_chat_template(messages[:3], tokenize=False) == prompt + "Paris<|im_end|>\n"
    digits = tokenizer.convert_ids_to_tokens(tokenizer.encode("365", add_special_tokens=False))
    assert digits == ["3", "6", "5"]


def test_streams_are_lazy():
    assert len(list(islice(embedded.records("chat", count=10**9), 3))) == 3
