"""vLLM's engine on students' folders, and what it writes held to what the student itself would have."""

import gc
from contextlib import contextmanager

import torch


@contextmanager
def engine(folder, **options):
    """vLLM in this process on a folder, without a tokenizer: prompts and replies are token ids."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    given = dict(max_model_len=512, max_num_seqs=8, disable_log_stats=False, enable_prefix_caching=False)
    llm = LLM(str(folder), skip_tokenizer_init=True, **(given | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def replies(llm, prompts: list[list[int]], length: int = 64):
    """vLLM's outputs of so many greedy tokens each."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False, logprobs=0)
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)


def token_ids(outputs) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def log_likelihoods(output) -> torch.Tensor:
    """[T]: what vLLM says of each token it wrote."""
    rows = zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
    return torch.tensor([row[token].logprob for token, row in rows])


def counted(llm, name: str) -> int:
    """One of vLLM's counters so far."""
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


@torch.no_grad()
def judged(student, prompt: list[int], reply: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the student itself makes of a reply: log-likelihoods [T], and how far each token is behind its best, [T].

    A reply whose tokens are all the best is its greedy reply.
    """
    ids = torch.tensor([prompt + reply], device=student.device)
    logits = student(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()  # [T, vocab]
    log_p = logits.log_softmax(-1)
    own = log_p.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return own.cpu(), (log_p.amax(-1) - own).cpu()
