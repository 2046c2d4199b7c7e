"""Programs, run against tests in the sandbox (HumanEval, MBPP)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Grades, Item
from gendistill.evaluate.kinds.shared.fields import Fields
from gendistill.evaluate.kinds.shared.programs import defines, program_of
from gendistill.recipe.fields import Names
from gendistill.sandbox.run import check_isolation, run_many


class Code(FewShotTask):
    """The reply is a program, and `tests` are run after it. Not ranked.

    An item's `checks`: "prefix", code that a reply may complete; "entry_point", name of the function or None; "tests",
    program that raises if the reply's is wrong.
    """

    kind: Literal["code"] = "code"
    answer: Names = Field(("answer",), min_length=1, description="field with a solution, which need not be there")
    tests: Names = Field(
        ("tests",), min_length=1, description="field: program, or list of statements, that raises if a reply is wrong"
    )
    entry_point: str | None = Field(None, description="field with a function's name, which `tests` take as check(NAME)")
    prefix: str | None = Field(None, description="field with code that the reply may complete")

    def check_machine(self) -> None:
        check_isolation()  # programs that a model wrote are run in a sandbox or not at all

    def read(self, fields: Fields, draws: Draws) -> Item:
        tests = "\n".join(fields.texts(self.tests))  # one program, or a list of statements
        if not tests.strip():
            raise fields.error(self.tests, "a program, or a list of statements", tests)
        name = None if self.entry_point is None else str(fields.get([self.entry_point]))
        prefix = "" if self.prefix is None else str(fields.get([self.prefix]))
        program = fields.find(self.answer)
        return Item(
            id=fields.index,
            kind=self.kind,
            question=self.user_text(fields),
            checks={"prefix": prefix, "entry_point": name, "tests": f"{tests}\n\ncheck({name})" if name else tests},
            # Without a solution the item can be asked, but not be shown as a few-shot example.
            solution="" if program is None else f"```python\n{(prefix + program).strip()}\n```",
            subject=self.subject_of(fields),
        )

    @classmethod
    def grade(cls, items: Sequence[Item], replies: Sequence[str], truncated: Sequence[bool] = ()) -> list[Grades]:
        """Runs each reply against its item's tests, as many at a time as there are cores.

        The answer's `parsed` is the program without its tests; the notes say under "tests" how it ended
        (`sandbox.Outcome.reason`), or "unparsed" if the reply holds no Python.

        Raises:
            UserError: this machine offers no isolation, so no program was run.
        """
        # None where a reply holds no Python: there is nothing to run.
        programs = [program_of(reply, item.checks) for item, reply in zip(items, replies, strict=True)]
        # Cut off before the function that the tests call was there, a reply has not answered yet.
        for number, cut_off in enumerate(truncated):
            name, program = items[number].checks.get("entry_point"), programs[number]
            if cut_off and name and program is not None and not defines(program, name):
                programs[number] = None
        tested = [(each, item.checks["tests"]) for item, each in zip(items, programs, strict=True) if each is not None]
        # The tests run in a process of their own, which no reply can have say that it passed.
        outcomes = iter(run_many(*zip(*tested, strict=True)) if tested else [])
        grades = []
        for program in programs:
            if program is None:
                answer, reason = Answer(None, False), "unparsed"
            else:
                outcome = next(outcomes)  # in the order of `tested`
                answer, reason = Answer(program, outcome.ok), outcome.reason
            # What program a reply gives is found in one way only, so strict and flexible are the same.
            grades.append(Grades(answer, answer, {"tests": reason}))
        return grades

    @classmethod
    def right_reply(cls, item: Item) -> str:
        (grades,) = cls.grade([item], [item.solution])  # really run: a data set's own solutions may fail
        passes = "does" if grades.strict.correct else "does not"
        tested = f" of `{item.checks['entry_point']}`" if item.checks["entry_point"] else ""
        return f"Right is a program that passes the data's tests{tested}; its own solution {passes}."
