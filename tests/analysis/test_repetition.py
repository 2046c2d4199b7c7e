import random
import time

import pytest

from gendistill.analysis.repetition import repeats

STORY = (
    "The lighthouse keeper rose before dawn, lit the stove and looked out over the water. A small boat was turning in "
    "the current, its sail torn. He took his coat from the hook, went down the ninety steps and pushed off to meet it. "
)
PARAGRAPH = STORY + "By noon both of them sat by the fire, and neither had yet said a word about the storm."
CODE = """def classify(values):
    for value in values:
        if value > 0:
            if value > 10:
                if value > 100:
                    print("large")
                else:
                    print("medium")
            else:
                print("small")
        else:
            print("none")
    return None
"""

# Judged by hand.
LOOPS = {
    "a sentence to the end": STORY + "I will check the answer again. " * 12,
    "cut short in the middle of a round": STORY + "I will check the answer again. " * 8 + "I will che",
    "one word": STORY + "very " * 40,
    "one word alone": "no " * 100,
    "one letter": STORY + "a" * 200,
    "two letters": "The answer is " + "ab" * 100,
    "lines": "Steps:\n" + "- Preheat the oven to 200 degrees.\n" * 10,
    "a paragraph three times": (PARAGRAPH + "\n\n") * 3,
    "changing punctuation": "Yes, of course. Yes; of course! Yes of course, yes - of course. " * 4,
    "changing case": STORY + "So it is. so it is. SO IT IS. " * 6,
    "changing white space": STORY + "the end \n the end\n\nthe   end\tthe end " * 6,
    "most of it, then an end": "Let me think. " * 30 + STORY[:60],
    "Chinese": "这个问题很有意思。" + "我不知道答案。" * 12,
    "Japanese": "はい、わかりました。" + "そうですね、" * 15,
    "Russian": "Ответ: " + "я не знаю, что сказать, " * 8,
    "Arabic": "الجواب: " + "لا أعرف الجواب. " * 10,
    "Hindi": "उत्तर: " + "मुझे नहीं पता। " * 10,
    "Thai": "คำตอบ: " + "ฉันไม่รู้คำตอบ" * 10,
    "emoji between words": "great 🎉 job " * 15,
    "code": "import os\n" + "result = result + compute(result)\n" * 20,
    "an endless number": "0." + "3" * 2000,
    "an endless ruler": STORY + "=" * 1500,
    "an endless table": "| item | price |\n|---|---|\n" + "| apple | 3 |\n" * 100,
    "a long period": STORY + "".join(f"Consider case {n} of the proof. " for n in range(9)) * 5,
    "a letter that hides in the unit": ("a" * 20 + "b") * 12,
}
HONEST = {
    "empty": "",
    "short": "Paris.",
    "a story": PARAGRAPH,
    "laughter": "Ha ha ha ha ha ha! That is a good one, hahahahaha.",
    "a scream": "Aaaaaaaaaaaaaaaaaaaaaaaargh! He fell.",
    "a refrain": "\n\n".join(
        f"{verse}\nAnd the river runs on, and the river runs on,\nand nobody asks where the river has gone."
        for verse in (
            "My father built boats in the bay.",
            "My mother sold bread by the quay.",
            "I left in the month of May.",
        )
    ),
    "a line three times": STORY + "Row on, row on, my friend. " * 3,
    "a chorus": "La la la la la, sing with me, la la la la la, by the sea",
    "a number with many zeros": "A googol is 1" + "0" * 100 + ", written out.",
    "a number with more zeros": "The largest double is about 1" + "0" * 308 + ".",
    "a table": "| name | ok | safe |\n|------|----|------|\n"
    + "".join(f"| {name} | yes | yes |\n" for name in ("north", "south", "east", "west", "up", "down")),
    "a table of equal cells": "Votes:\n\n| a | b | c | d |\n|---|---|---|---|\n" + "| yes | yes | yes | yes |\n" * 8,
    "a matrix of zeros": "[" + ",\n ".join("[0, 0, 0, 0, 0, 0, 0, 0]" for _ in range(8)) + "]",
    "indented code": CODE,
    "deep indentation": "if a:\n" + " " * 60 + "return 1\n" + " " * 60 + "return 2\n",
    "a list": "".join(f"{n}. Write down the number {n} and double it: {2 * n}.\n" for n in range(1, 30)),
    "counting": ", ".join(map(str, range(1, 200))),
    "a ruler": "Results\n" + "=" * 80 + "\nAll passed.\n" + "-" * 80,
    "tabs in a form": "Name: " + "_" * 100 + "\nDate: " + "." * 100,
    "multiplication": "".join(f"7 x {n} = {7 * n}\n" for n in range(1, 13)),
    "closing tags": "<ul><li>one</li></ul>" + "</div>" * 8,
    "rounds of a dialogue": "".join(
        f"A: Is it {x}?\nB: No, it is not {x}.\n" for x in "red blue green white black".split()
    ),
    "an answer said twice": PARAGRAPH + "\n\n" + PARAGRAPH,
    "a loop in passing": STORY + "He wrote: " + "I am sorry. " * 12 + PARAGRAPH,
    "a Chinese poem": "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "Chinese laughter": "哈哈哈哈哈哈哈哈哈哈，太好笑了！",
    "a Thai sentence": "กรุงเทพมหานครเป็นเมืองหลวงและนครที่มีประชากรมากที่สุดของประเทศไทย",
    "hexadecimal": "ff00ff00ff00ff00 is the mask, deadbeefdeadbeef the key",
    "bytes": "b'" + r"\x00" * 16 + "'",
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_seen(name):
    assert repeats(LOOPS[name])


@pytest.mark.parametrize("name", HONEST)
def test_honest_texts_are_not_loops(name):
    assert not repeats(HONEST[name])


def test_a_loop_starts_at_four_rounds_and_a_hundred_columns():
    unit = "abcde fghij klmno pqrst uvwxy "  # 30 columns
    assert repeats((unit * 4).strip())
    assert not repeats((unit * 3).strip())
    assert not repeats(unit[:18] * 5)  # 90 columns
    assert repeats(unit[:18] * 6)


def test_every_period_and_offset_is_found():
    random.seed(0)
    for period in range(1, 120):
        unit = "".join(random.choices("abcdefg hij", k=period - 1)) + "x"
        assert repeats(STORY + unit * (4 + 100 // period)), unit


def test_words_in_random_order_are_no_loop():
    random.seed(0)
    words = "the a of and to cat dog house runs sees big small red".split()
    assert not any(repeats(" ".join(random.choices(words, k=300))) for _ in range(50))


def test_long_texts_take_little_time():
    random.seed(0)
    text = " ".join(str(random.random()) for _ in range(5000))
    start = time.perf_counter()
    assert not repeats(text)
    assert repeats(text + "and so on, " * 2000)
    assert time.perf_counter() - start < 5
