"""Whether a reply gives the answer of a question with a distant answer."""

import pytest

from gendistill.data.distant.checking import is_right
from gendistill.data.distant.questions import Question


@pytest.mark.parametrize(
    "needed, instead, reply, right",
    [
        (("1663",), (), "It ended in 1663.", True),
        (("1663",), (), "It ended in 16630.", False),
        (("862",), (), "There are 1,862 volumes.", False),
        (("862",), (), "862, to be exact", True),
        (("862",), (), "862.5", False),
        (("53470", "11339"), (), "Ceflam has 53470, Nobais 11339", True),
        (("53470", "11339"), (), "53470", False),
        (("of the sea and the land",), (), "... of the sea\nand the land", True),
        (("Leath", "862", "144"), ("Flotho",), "Leath lends 862, Flotho only 144", True),
        (("Leath", "862", "144"), ("Flotho",), "Flotho lends 862, Leath 144", False),
        (("MA-7376:jou",), (), "`MA-7376:jou`", True),
        ((), (), "Fopre", True),
        ((), (), "Fopreau", False),
    ],
)
def test_a_right_answer_says_all_that_is_needed(needed, instead, reply, right):
    assert is_right(Question("any", "?", "Fopre", (), None, needed, instead), reply) == right
