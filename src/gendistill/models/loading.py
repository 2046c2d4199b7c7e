"""Loading teachers and students, with one clear error for what cannot be loaded."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

import gendistill.models  # noqa: F401  registers the student with transformers
from gendistill.errors import UserError
from gendistill.files import EMBEDDED, located_model

transformers_logging.disable_progress_bar()  # gendistill shows its own


def resolve(name: str) -> str:
    """'embedded' -> the folder shipped in the package; a folder -> its absolute path; a hub id stays as it is.

    Raises:
        UserError: it is the name of a folder and of no hub id, and there is no such folder.
    """
    if name == EMBEDDED:
        # Here and not above: the package's own teacher is data, and whoever brings a teacher needs none of it.
        from gendistill.embedded import teacher_folder

        return str(teacher_folder())
    path = located_model(name, Path.cwd())
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise UserError(f"model '{name}': no such folder. Give 'embedded', a Hugging Face folder, or a hub id")
    return path


def model_folder(name: str) -> Path:
    """The folder that holds a model that was loaded; of one from the hub, the one it was fetched to."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        folder = Path(cached_file(name, "config.json", local_files_only=True)).parent
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads a model's weights from, by name."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def load_config(name: str):
    """The configuration of a teacher or student; no weights are read."""
    return _load(AutoConfig, name)


def load_model(name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A causal language model in evaluation mode, every weight present."""
    model, report = _load(AutoModelForCausalLM, name, dtype=dtype, output_loading_info=True)
    # transformers only warns of these, and fills what is missing with random numbers.
    problems = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(problems.values()):
        found = "; ".join(
            f"{kind.replace('_keys', '')}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise UserError(f"{name}: the weights do not fit the model: {found}")
    return model.to(device).eval()


def load_tokenizer(name: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """A tokenizer whose ids all exist in an embedding of `vocab_size` rows and that knows how a text ends."""
    tokenizer = _load(AutoTokenizer, name)
    if len(tokenizer) > vocab_size:
        raise UserError(f"{name}: the tokenizer has {len(tokenizer)} entries, the model's embedding {vocab_size}")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer names no end-of-text token (eos_token)")
    if tokenizer.pad_token_id is None:  # padding is masked everywhere, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(kind, name: str, **kwargs):
    try:
        return kind.from_pretrained(resolve(name), **kwargs)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):  # a ValueError too, and already says what to do
            raise
        # The first line alone: transformers continues with advice on tokens and caches that may not apply.
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{name}' cannot be loaded ({reason}). Give 'embedded', a Hugging Face folder, or a hub id you can reach."
        ) from error
