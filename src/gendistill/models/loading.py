"""Loading teachers and students, with one clear error for what cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
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
    """The configuration of a teacher or student; no weights are read.

    Raises:
        UserError: it cannot be read, has impossible sizes, makes no model, or is that of a quantised model.
    """
    # First as it is written: transformers makes a list of all layers.
    with _told_as_user_error(name):
        written, _ = PreTrainedConfig.get_config_dict(resolve(name))
        layers = written.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise UserError(f"'{name}': its config.json cannot be right: num_hidden_layers {layers}")
    config = _load(AutoConfig, name)
    method = _quantisation(config)
    if method is not None:
        raise UserError(
            f"'{name}' is quantised ({method}); give the model in bfloat16 or float32 that it was made from"
        )
    _check_sizes(name, config.get_text_config())
    with _told_as_user_error(name), torch.device("meta"), no_init_weights():
        # This names an activation or rotary type that there is not, say.
        AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return config


def _quantisation(config) -> str | None:
    """The method that a model is quantised by, None if it is not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else vars(settings)
    return str(settings.get("quant_method", "by an unnamed method"))


SIZES = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
    "max_position_embeddings"
).split()
LONGEST_REASON = 300  # characters of what transformers says
MOST_LAYERS = 10_000  # each is built, if only in outline


def _check_sizes(name: str, config) -> None:
    sizes = {size: getattr(config, size, None) for size in SIZES}
    sizes = {size: value for size, value in sizes.items() if value is not None}  # families leave some of them out
    wrong = {size: value for size, value in sizes.items() if not isinstance(value, int) or value < 1}
    if wrong:
        found = ", ".join(f"{size} {value!r}" for size, value in wrong.items())
        raise UserError(f"'{name}': its config.json cannot be right: {found}")
    heads, key_heads = sizes.get("num_attention_heads", 1), sizes.get("num_key_value_heads", 1)
    if heads % key_heads:
        raise UserError(f"'{name}': its config.json cannot be right: {heads} heads do not share {key_heads} key heads")


def load_model(name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A causal language model in evaluation mode, every weight present.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those that the configuration asks for.
    """
    # Other shapes are let through, and come back in the report with their names.
    model, report = _load(
        AutoModelForCausalLM, name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    # transformers only warns of these, and fills what is missing with random numbers.
    problems = {
        kind: sorted(map(_described, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(problems.values()):
        found = "; ".join(
            f"{kind.replace('_keys', '')}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise UserError(f"{name}: the weights do not fit the model: {found}")
    return model.to(device).eval()


def load_tokenizer(name: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """A tokenizer whose ids all exist in an embedding of `vocab_size` rows and that knows how a text ends.

    Raises:
        UserError: there is none, it is damaged, it has other ids, or it names no end.
    """
    tokenizer = _load(AutoTokenizer, name)
    # Where there are no files transformers makes one of special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(
            f"'{name}': has no tokenizer; copy its tokenizer.json and tokenizer_config.json into the folder"
        )
    if len(tokenizer) > vocab_size:
        raise UserError(f"{name}: the tokenizer has {len(tokenizer)} entries, the model's embedding {vocab_size}")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer names no end-of-text token (eos_token)")
    if tokenizer.pad_token_id is None:  # padding is masked everywhere, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _described(key) -> str:
    """A tensor's name; of one with another shape that as well, as stored and as the configuration wants it."""
    if not isinstance(key, tuple):
        return str(key)
    name, stored, wanted = key
    return f"{name} {tuple(stored)} for {tuple(wanted)}"


def _load(kind, name: str, **kwargs):
    with _told_as_user_error(name):
        # False, not left out: transformers would ask at the terminal whether to run what came with the model.
        return kind.from_pretrained(resolve(name), trust_remote_code=False, **kwargs)


@contextmanager
def _told_as_user_error(name: str) -> Iterator[None]:
    """Whatever transformers raises over a model's files is about those files, and comes in many types."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):  # already says what to do, or is not about the files
        raise
    except Exception as error:
        if pointers := _lfs_pointers(name):
            raise UserError(
                f"'{name}': {', '.join(pointers)} are pointers of git-lfs, not the files; run 'git lfs pull' in it"
            ) from error
        # The line that says what is wrong: transformers continues with advice on tokens and caches that may not apply.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason is given"]
        reason = shorten(lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0], LONGEST_REASON)
        if isinstance(error, SafetensorError):
            raise UserError(f"'{name}': its weights are damaged or cut short ({reason}); fetch them again") from error
        if not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(
            f"'{name}' cannot be loaded ({reason}). Give 'embedded', a Hugging Face folder, or a hub id you can reach."
        ) from error


def _lfs_pointers(name: str) -> list[str]:
    """Files of a local folder that git-lfs has not fetched."""
    folder = Path(resolve(name))
    small = [path for path in sorted(folder.glob("*")) if path.is_file() and path.stat().st_size < 1024]
    return [path.name for path in small if path.read_bytes().startswith(b"version https://git-lfs")]
