"""Prompts with their answers: where each token is predicted, and what a model can read."""

from types import SimpleNamespace

import pytest
import torch

from gendistill.errors import UserError
from gendistill.evaluate.kinds.recall import AnsweredPrompt
from gendistill.placement.prompts import Answered, PromptMaker
from gendistill.recipe.placement import Beam


def test_each_token_of_an_answer_is_predicted_by_the_place_before_it():
    answered = Answered.batch([AnsweredPrompt([5, 6], [7, 8]), AnsweredPrompt([1, 2, 3], [4])], {9, 11}, "cpu")
    assert answered.input_ids.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]
    assert answered.rows.tolist() == [0, 0, 0, 1, 1]
    assert answered.columns.tolist() == [1, 2, 3, 2, 3]
    assert answered.targets.tolist() == [7, 8, 9, 4, 9]
    assert answered.is_end.tolist() == [False, False, True, False, True]
    assert answered.tokens == 8


def test_a_prompt_that_the_model_cannot_read_with_its_answer_is_refused(tokenizer):
    def maker(positions):
        config = SimpleNamespace(max_position_embeddings=positions)
        teacher = SimpleNamespace(config=config, device=torch.device("cpu"))
        return PromptMaker(Beam(method="beam", layers=1, length=400), tokenizer, teacher, seed=0)

    prompts = maker(1000).make(3)
    assert maker(1000).make(5)[:3] == prompts
    longest = max(len(prompt) + len(answer) for prompt, answer in prompts)
    assert maker(longest).make(3) == prompts
    with pytest.raises(
        UserError, match=rf"length is 400: .* {longest} tokens, .* end at {longest - 1}\. Give a shorter"
    ):
        maker(longest - 1).make(3)
