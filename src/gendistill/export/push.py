"""An exported folder on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from gendistill.errors import UserError


def check_push(repository: str) -> None:
    """Raises UserError if nothing can be pushed there: told before minutes of writing.

    Args:
        repository: "NAME" or "USER/NAME" on the hub.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push {repository}: no name of a repository on the hub ({error})") from None
    # The hub itself would say so only after all is written.
    if get_token() is None:
        raise UserError(f"--push {repository}: not logged in to the hub; run 'hf auth login', or set HF_TOKEN")


def push(folder: Path, repository: str) -> str:
    """Uploads the folder, into a private repository if there is none yet; returns its address.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    api = HfApi()
    try:
        # Private: who publishes a model should have read its card first.
        address = api.create_repo(repository, private=True, exist_ok=True)
        # Files that lie there already with the same content are not sent again.
        api.upload_folder(folder_path=folder, repo_id=address.repo_id, commit_message="gendistill export")
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"--push {repository}: the hub did not take it ({error}). {folder} is whole; the same command tries again"
        ) from error
    return str(address)
