"""Decoding by CUDA graphs, rows leaving on the way, says what eager steps say."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from gendistill.inference.decoding import Decoding, DecodingBatch, Sampling
from gendistill.inference.prefill import Prefix
from gendistill.models.conversion import convert
from gendistill.models.families import student_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPE = dict(
    vocab_size=500,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    tie_word_embeddings=True,
    initializer_range=0.3,
)
MODELS = {"teacher": None} | {
    f"{mixer}-{place}": dict(mixer=mixer, keep=keep)
    for mixer in ("kda", "gated_deltanet", "gla", "mamba2", "lightning")
    for place, keep in (("hybrid", [1]), ("pure", []))
}
MODELS |= {
    "window": dict(mixer="window", keep=[1], window=16, sinks=4),
    "kda-beside-window": dict(mixer="kda", keep=[1], window=16, sinks=4),
    "kda-share-by-token": dict(mixer="kda", keep=[1], window=16, sinks=4, window_share="token"),
}


def decode(model, prompts, steps, ends, prefix, sampling, rows=8):
    decoding = Decoding(model, rows, steps, ends=ends, pad=0, sampling=sampling)
    found = {}
    for ended in decoding.run(prompts, prefix):
        found |= ended
    return [found[i] for i in range(len(prompts))]


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_graphs_decode_like_eager_steps(name, monkeypatch):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE)).eval()
    if MODELS[name] is not None:
        options = dict(MODELS[name])
        model, _ = convert(model, student_config(model.config, options.pop("keep"), **options), seed=0)
    model = model.cuda()
    draw = torch.Generator().manual_seed(1)
    shared = torch.randint(2, 500, (40,), generator=draw).tolist()
    prompts = [
        [*shared, *torch.randint(2, 500, (length,), generator=draw).tolist()] for length in (3, 1, 12, 7, 30, 2, 9, 5)
    ]
    keys = [str(number) for number in range(8)]
    prefix = Prefix.of(model, prompts)
    captured = []
    capture = DecodingBatch._capture
    monkeypatch.setattr(DecodingBatch, "_capture", lambda batch: (captured.append(len(batch.token)), capture(batch)))
    for sampling in (None, Sampling(1.0, 0.95, keys)):
        how = dict(prefix=prefix, sampling=sampling)
        unended = decode(model, prompts, 64, ends=[-1], **how)
        assert captured == [8]
        assert decode(model, prompts, 64, ends=[-1], rows=3, **how) == unended  # rows change hands under a graph
        assert captured[1] == 3
        # Ends that five of the eight rows say some time: half of them leave, and the rest is captured anew.
        last = {ids[at] for ids, at in zip(unended[:5], (10, 12, 14, 16, 18), strict=True)}
        replies = decode(model, prompts, 64, ends=sorted(last), **how)
        assert len(captured) > 3
        captured.clear()
        monkeypatch.setattr(DecodingBatch, "_is_worth_a_graph", lambda batch: False)
        assert decode(model, prompts, 64, ends=[-1], **how) == unended
        assert decode(model, prompts, 64, ends=sorted(last), **how) == replies
        assert captured == []
        monkeypatch.undo()
        monkeypatch.setattr(
            DecodingBatch, "_capture", lambda batch: (captured.append(len(batch.token)), capture(batch))
        )
