"""Students in vLLM itself, on its CPU backend: `make vllm-tests`.

Whatever vLLM does with requests, the tokens are those that the student would have chosen by itself.
"""

import importlib.util
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from gendistill.export.folder import export_student
from gendistill.models.loading import load_model
from small_models import make_student
from vllm_tools import counted, engine, judged, log_likelihoods, replies, token_ids

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]
SIZES = dict(head_dim=32, hidden_size=64)  # vLLM's attention on a CPU knows no smaller heads
WINDOW = dict(window=24, sinks=3)
# Families, heads tied and untied, gates and convolutions of both kinds; a window alone, beside, and both.
STUDENTS = {
    "qwen3": dict(family="qwen3", keep=(1, 3)),
    "llama, bounded": dict(
        family="llama", keep=(0, 2), log_decay_bound=-5.0, gate_activation="sigmoid", conv_activation="silu"
    ),
    "qwen2, window beside": dict(family="qwen2", keep=(1,), **WINDOW),
    "qwen3, window and kda": dict(family="qwen3", keep=(1,), mixer="window", mixer_in_layer={3: "kda"}, **WINDOW),
    "qwen3, pure": dict(family="qwen3", keep=(), **WINDOW),
    "qwen3, share by token": dict(family="qwen3", keep=(1,), window_share="token", **WINDOW),
    "qwen2, other mixers": dict(
        family="qwen2", keep=(0,), mixer="gated_deltanet", mixer_in_layer={2: "gla", 3: "mamba2"}
    ),
}
# Prompts of one token, some that fill a piece or a block, some with a common beginning of more than a block.
LENGTHS = (1, 2, 5, 17, 40, 63, 64, 65, 130, 1, 200, 3)
BLOCK = 128  # tokens, of these sizes and less
CLOSE = 1e-4  # in log-likelihood


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, options in STUDENTS.items():
        made[name] = tmp_path_factory.mktemp("student")
        make_student(**options, sizes=SIZES).save_pretrained(made[name])
    return made


def prompts() -> list[list[int]]:
    drawn = torch.Generator().manual_seed(0)
    return [torch.randint(2, 97, (length,), generator=drawn).tolist() for length in LENGTHS]


def hold_to_student(folder, outputs) -> None:
    """Every token is the student's own best, and as likely as it says."""
    student = load_model(str(folder), torch.float32, "cpu")
    for output in outputs:
        own, behind = judged(student, output.prompt_token_ids, list(output.outputs[0].token_ids))
        assert behind.max() == 0
        assert (own - log_likelihoods(output)).abs().max() < CLOSE


def test_registration_can_be_repeated():
    from vllm import ModelRegistry
    from vllm.config import CompilationConfig

    from gendistill.vllm import ARCHITECTURE, OPERATION, register

    register()
    once = list(CompilationConfig._attention_ops), list(ModelRegistry.get_supported_archs())
    register()
    assert (list(CompilationConfig._attention_ops), list(ModelRegistry.get_supported_archs())) == once
    assert once[0].count(OPERATION) == 1 and ARCHITECTURE in once[1]


@pytest.mark.parametrize("name", STUDENTS)
def test_tokens_are_the_students(folders, name):
    """Prompts in pieces of 64 tokens at most, of several requests at once, beside others that decode."""
    with engine(folders[name], dtype="float32", enforce_eager=True, max_num_batched_tokens=64) as llm:
        hold_to_student(folders[name], replies(llm, prompts()))


def test_cached_prefixes_change_nothing(folders):
    """Compiled, too; the second time most of the long prompts is there already."""
    folder = folders["qwen2, window beside"]
    asked = [prompt + [7] * i for i, prompt in enumerate(prompts())]
    with engine(folder, dtype="float32", enable_prefix_caching=True, max_num_batched_tokens=BLOCK) as llm:
        first = replies(llm, asked)
        again = replies(llm, asked)
    hold_to_student(folder, first)
    assert token_ids(again) == token_ids(first)
    assert sum(output.num_cached_tokens for output in again) >= 2 * BLOCK


def test_preempted_requests_go_on_as_before(folders):
    folder = folders["qwen3"]
    # A prompt of one token comes to a block that another has used, and goes on from nothing.
    asked = [(prompt * 100)[: 1 if i % 3 == 2 else 100] for i, prompt in enumerate(prompts() * 2)]
    short = dict(num_gpu_blocks_override=12, max_num_batched_tokens=BLOCK, enforce_eager=True)
    with engine(folder, dtype="float32", **short) as llm:
        outputs = replies(llm, asked)
        preempted = counted(llm, "vllm:num_preemptions")
    hold_to_student(folder, outputs)
    assert preempted > 0


def test_a_thousand_requests_leave_nothing(folders):
    folder = folders["qwen2, window beside"]
    asked = [prompt[: 1 + i % 20] for i in range(21) for prompt in prompts()][:250]
    with engine(folder, dtype="float32", enforce_eager=True, max_num_batched_tokens=256, max_num_seqs=64) as llm:
        first = token_ids(replies(llm, asked, length=4))
        for _ in range(3):
            assert token_ids(replies(llm, asked, length=4)) == first
        assert counted(llm, "vllm:kv_cache_usage_perc") == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for each rank")
def test_heads_on_two_ranks(folders, monkeypatch):
    first, second = sorted(os.sched_getaffinity(0))[:2]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{first}|{second}")  # on one NUMA node vLLM wants to be told
    folder = folders["qwen2, window beside"]
    with engine(folder, dtype="float32", enforce_eager=True, tensor_parallel_size=2) as llm:
        hold_to_student(folder, replies(llm, prompts()))


def test_exported_folders_and_damaged_ones(folders, tokenizer, tmp_path):
    exported, folder = tmp_path / "exported", tmp_path / "student"
    make_student("qwen3", sizes=SIZES | dict(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_student(folder, exported)
    options = dict(dtype="float32", enforce_eager=True)
    with engine(exported, **options) as llm:
        hold_to_student(folder, replies(llm, prompts()[:4], length=16))
    file = exported / "model.safetensors"
    tensors = load_file(file)
    save_file({name: x for name, x in tensors.items() if not name.endswith("A_log")}, file, metadata={"format": "pt"})
    with (
        pytest.raises(ValueError, match="the folder lacks model.layers.0.linear_attn.A_log"),
        engine(exported, **options),
    ):
        pass


def test_refusals_come_before_loading(folders):
    refused = pytest.raises(ValueError, match="--tensor-parallel-size can be 1, 2, 4")
    with refused, engine(folders["qwen3"], tensor_parallel_size=3):
        pass
