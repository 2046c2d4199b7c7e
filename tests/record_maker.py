"""Records as `evaluate_model` writes them, made by hand."""

from gendistill.names import LETTERS


def choice_record(number, gold=0, reply="A", *, parsed="A", ranked=None, truncated=False, rotations=None, **changes):
    """A question with four options; `gold` and `ranked` are indices, ranked right if not given."""
    ranked = gold if ranked is None else ranked
    right = parsed == LETTERS[gold]
    record = dict(
        id=number,
        question=f"Which colour has thing {number}?",
        choices=["red", "green", "blue", "grey"],
        candidates=list("ABCD"),
        gold=[gold],
        answers=["red green blue grey".split()[gold]],
        prompt=f"<|im_start|>user\nWhich colour has thing {number}?\nA. red\nB. green\nC. blue\nD. grey<|im_end|>\n",
        scores=[-0.5 if index == ranked else -2.5 for index in range(4)],
        ranked=LETTERS[ranked],
        ranking_correct=ranked == gold,
        ranking_by=dict.fromkeys(("letter", "text", "text_per_token", "text_per_byte"), ranked == gold),
        text_scores=[-9.0, -8.0, -7.0, -6.0],
        reply=reply,
        reply_tokens=max(1, len(reply) // 4),
        truncated=truncated,
        parsed=parsed,
        generation_correct=right,
        flexible_parsed=parsed,
        flexible_correct=right,
    )
    return record | ({} if rotations is None else {"rotations": rotations}) | changes


def free_record(number, right, **changes):
    """A task that is not ranked."""
    record = dict(
        id=number,
        question=f"Write program {number}.",
        choices=[],
        candidates=[],
        gold=[],
        answers=[],
        prompt=f"<|im_start|>user\nWrite program {number}.<|im_end|>\n",
        scores=None,
        ranked=None,
        ranking_correct=None,
        reply=f"def f():\n    return {number}\n",
        reply_tokens=12,
        truncated=False,
        parsed="def f",
        generation_correct=right,
        flexible_parsed="def f",
        flexible_correct=right,
    )
    return record | changes


def turned(*letters, gold=0):
    """Replies under the rotations of one item, by their letters; None is an unparsed one."""
    return [
        {
            "reply": letter or "?",
            "parsed": letter,
            "choice": None if letter is None else ("ABCD".index(letter) + by) % 4,
            "correct": letter == "ABCD"[(gold - by) % 4],
        }
        for by, letter in enumerate(letters)
    ]
