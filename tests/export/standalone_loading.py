"""Run by test_standalone.py as a program of its own: exported folders where there is no gendistill.

python standalone_loading.py FOLDER ...: each has exported/ and expected.pt. Prints a line of JSON for each: what of it
is as it should be.
"""

import json
import sys
from pathlib import Path

sys.modules["gendistill"] = None  # any import of it fails, wherever it is installed

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

CLOSE = dict(rtol=0, atol=1e-4)  # as tests/small_models.py has it, for logits in float64


@torch.no_grad()
def check(folder: Path, expected: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    ids, padding = expected["ids"], 3  # ids [B, T]
    mask = torch.ones_like(ids)
    replies = model.generate(ids, attention_mask=mask, max_new_tokens=64, min_new_tokens=64, do_sample=False)
    found = {
        "logits": torch.equal(model(ids).logits, expected["logits"]),
        "tokens": torch.equal(replies, expected["replies"]),
        "ids": AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("w3 w7 w5")["input_ids"] == [5, 9, 7],
    }
    model = model.double()
    whole = model(ids, use_cache=False).logits
    cache, pieces = None, []
    for piece in ids.split([ids.shape[1] - 6, *[1] * 6], dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    found["cached"] = torch.allclose(torch.cat(pieces, dim=1), whole, **CLOSE)
    left = torch.cat([ids[:, :padding].flip(1), ids], dim=1)  # what is in padding does not matter
    mask = torch.cat([torch.zeros_like(mask[:, :padding]), mask], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(left, attention_mask=mask, position_ids=positions).logits[:, padding:]
    return found | {"padded": torch.allclose(padded, whole, **CLOSE)}


def saved_again(folder: Path, again: Path, expected: dict) -> bool:
    """Whether transformers copies all that such a model needs, as after training it further."""
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).save_pretrained(again)
    names = {path.name for path in folder.glob("*.py")}
    model = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    same_code = {path.name for path in again.glob("*.py")} == names
    with torch.no_grad():
        return same_code and torch.equal(model(expected["ids"]).logits, expected["logits"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, folder in enumerate(map(Path, sys.argv[1:])):
        expected = torch.load(folder / "expected.pt")
        found = check(folder / "exported", expected)
        if number == 0:
            found["saved again"] = saved_again(folder / "exported", folder / "again", expected)
        print(json.dumps(found))
