"""Our models as lm-evaluation-harness knows them. Importing this module makes "gendistill" a model of lm_eval.

    python -m gendistill.evaluate.harness_model --model gendistill --model_args pretrained=FOLDER --tasks arc_easy

is lm_eval's own command line with that name known; on its own it finds models in its own package only.
"""

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from gendistill.models.loading import load_model, load_tokenizer


@register_model("gendistill")
class GendistillLM(HFLM):
    """A teacher or student, loaded as `gendistill evaluate` loads it: every weight present, bfloat16 on CUDA."""

    def __init__(self, pretrained: str, device: str = "cuda", dtype: str = "auto", **options):
        """
        Args:
            pretrained: a student's folder, 'embedded', or any name of a causal model.
            device: without CUDA always "cpu", since lm_eval's command line asks for "cuda:0" on its own.
            dtype: name of torch's; "auto" is bfloat16 on CUDA and float32 on a CPU.
            options: HFLM's.
        """
        # lm_eval passes "cuda:0" whether there is one or not.
        device = device if torch.cuda.is_available() else "cpu"
        if dtype == "auto":  # by the device, not by what the checkpoint was saved in
            dtype = "float32" if device == "cpu" else "bfloat16"
        # By our own loader: transformers would fill missing weights with random ones, and only warn.
        model = load_model(pretrained, getattr(torch, dtype), device)
        tokenizer = load_tokenizer(pretrained, model.config.get_text_config().vocab_size)
        super().__init__(pretrained=model, tokenizer=tokenizer, **options)


if __name__ == "__main__":
    cli_evaluate()
