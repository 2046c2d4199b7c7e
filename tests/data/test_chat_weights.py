"""A turn of weight 0 is context, in whatever place, under whatever template, and on whatever tokens the loss is."""

import itertools
import json

import numpy as np
import pytest

from gendistill.data.chat import encode_conversation, encode_conversations
from gendistill.data.dataset import PackedDataset
from gendistill.data.encoding import Encoder
from gendistill.data.fingerprints import tokenizer_hash
from gendistill.data.masks import check_masks
from gendistill.data.sources import Document
from gendistill.errors import UserError
from gendistill.files import seal

OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + OPENING
TEMPLATES = {
    "chatml": CHATML,
    "headers": (
        "<|bos|>{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
    ),
    "marked": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + OPENING
    ),
    # As Qwen3: past turns lose a block that the last one has, and so are context anyhow.
    "thinking": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<t>\n\n</t>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<t>\n\n</t>\n\n{% endif %}"
    ),
    # As templates that look at what keys a message has.
    "all keys": CHATML.replace("{{ m.content }}", "{{ m.content }} {{ m | length }}"),
}
END = {name: "<|eot|>" if name == "headers" else "<|im_end|>" for name in TEMPLATES}
REPLIES = ["It is 5.", "see <|im_end|> é😀", "4"]
SOUND = [name for name in TEMPLATES if name != "all keys"]


def chat(*weights, replies=REPLIES):
    """Questions and replies, of each weight one; None leaves the key out."""
    messages = []
    for number, (weight, reply) in enumerate(zip(weights, replies, strict=False)):
        answer = {"role": "assistant", "content": reply}
        messages += [
            {"role": "user", "content": f"ask {number}"},
            answer if weight is None else answer | {"weight": weight},
        ]
    return messages


def runs(tokenizer, encoded, wanted) -> list[str]:
    """Texts of the runs of tokens whose mask is as wanted."""
    pairs = itertools.groupby(zip(encoded.loss_mask, encoded.input_ids, strict=True), key=lambda pair: pair[0])
    return [tokenizer.decode([token for _, token in group]) for mask, group in pairs if mask == wanted]


@pytest.mark.parametrize("weights", list(itertools.product([0, 1, None], repeat=3)))
@pytest.mark.parametrize("name", SOUND)
def test_what_has_weight_0_is_not_learnt(make_tokenizer, name, weights):
    tokenizer = make_tokenizer(TEMPLATES[name])
    learnt = [n for n, weight in enumerate(weights) if weight != 0]
    if not learnt:
        with pytest.raises(UserError, match="every assistant's turn has weight 0"):
            encode_conversation(tokenizer, chat(*weights))
        return
    encoded = encode_conversation(tokenizer, chat(*weights))
    last = learnt[-1]
    wanted = [last] if name == "thinking" else learnt
    assert runs(tokenizer, encoded, True) == [REPLIES[n] + END[name] for n in wanted]
    # It stands there all the same, as it was said, and nothing behind the last reply that is learnt.
    plain = encode_conversation(tokenizer, chat(*[None] * (last + 1)))
    assert encoded.input_ids == plain.input_ids


@pytest.mark.parametrize("weights", list(itertools.product([0, 1], repeat=3))[1:])
@pytest.mark.parametrize("name", SOUND)
def test_on_all_tokens_everything_else_is_learnt(make_tokenizer, name, weights):
    tokenizer = make_tokenizer(TEMPLATES[name])
    (encoded,) = encode_conversations(tokenizer, [chat(*weights)], all_tokens=True)
    last = max(n for n, weight in enumerate(weights) if weight)
    left_out = [REPLIES[n] + END[name] for n, weight in enumerate(weights[:last]) if weight == 0]
    assert runs(tokenizer, encoded, False) == left_out


def test_templates_see_role_and_content_alone(make_tokenizer):
    tokenizer = make_tokenizer(TEMPLATES["all keys"])
    (ids, _), (plain, _) = (encode_conversation(tokenizer, chat(*weights)) for weights in ((0, 1), (None, None)))
    assert ids == plain


@pytest.mark.parametrize("empty", ["", " ", "\n\n"])
@pytest.mark.parametrize("place", [0, 1])
def test_an_empty_reply_is_not_learnt_as_saying_nothing(make_tokenizer, empty, place):
    replies = ["one", "two"]
    replies[place] = empty
    with pytest.raises(UserError, match="a reply is empty"):
        encode_conversation(make_tokenizer(CHATML), chat(1, None, replies=replies))


def test_a_conversation_that_is_not_learnt_spoils_no_batch(make_tokenizer):
    documents = [Document(f"a:{n}", chat(*weights)) for n, weights in enumerate([(0, 0), (0, 1)])]
    for loss_on in ("completion", "all"):
        encoded = Encoder(make_tokenizer(CHATML), 256, loss_on).conversations(documents)
        assert len(encoded.documents) == 1 and "a:0: every assistant's turn has weight 0" in str(encoded.malformed[0])


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda mask: mask, False),
        (lambda mask: np.where(np.arange(len(mask)) == len(mask) - 3, 0, mask), True),
        (lambda mask: np.array([0, *mask[2:], 0]), True),  # one early
        (lambda mask: np.array([0, 0, *mask[1:-1]]), True),  # one late
    ],
)
def test_the_check_of_masks_knows_turns_of_weight_0(make_tokenizer, tmp_path, change, refused):
    tokenizer = make_tokenizer(CHATML)
    (piece,) = Encoder(tokenizer, 256, "all").conversations([Document("a", chat(0, 1))]).documents
    data = rows_of(piece, change(piece.loss_mask), tokenizer, tmp_path)
    if refused:
        with pytest.raises(UserError, match="a token inside a document is left out of a loss on all tokens"):
            check_masks(data, tokenizer)
    else:
        check_masks(data, tokenizer)


def rows_of(piece, mask, tokenizer, folder) -> PackedDataset:
    """One row that holds a piece with this mask."""
    length = len(piece.input_ids)
    columns = {"input_ids": piece.input_ids, "position_ids": np.arange(length, dtype=np.int32), "loss_mask": mask}
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values[None])
    stats = {"ends": [tokenizer.eos_token_id], "loss_on": "all", "tokenizer": tokenizer_hash(tokenizer)}
    (folder / "stats.json").write_text(json.dumps({"key": "", "stats": stats}))
    seal(folder)
    return PackedDataset(folder)
