"""Models of the Hugging Face Hub, fetched by its own package where that is installed."""

from collections.abc import Sequence
from pathlib import Path

from .errors import FormatError, MissingFileError, first_line


def fetched(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """Fetch files of a model, unless they were fetched before.

    Args:
        name: OWNER/NAME.
        revision: a branch, tag or commit; None: the main branch.
        files: their names.

    Returns:
        The folder that has them.

    Raises:
        ModuleNotFoundError: huggingface_hub is not installed.
        MissingFileError: there is no such model or revision, or it cannot be had.
        FormatError: the model has none of these files.
    """
    neither = f"name: expected a folder, or OWNER/NAME of a model on the Hugging Face Hub, got {name!r}"
    try:
        from huggingface_hub import snapshot_download, utils
    except ModuleNotFoundError:
        message = f"{neither}, and there is no such folder; to fetch models from the Hub, `pip install huggingface_hub`"
        raise ModuleNotFoundError(message, name="huggingface_hub") from None
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except utils.GatedRepoError:
        raise MissingFileError(
            f"name: expected a model that you may read, got {name!r}: ask for access on its page, then `hf auth login`"
        ) from None
    except utils.RepositoryNotFoundError:
        raise MissingFileError(f"{neither}, which is neither; a private model needs `hf auth login`") from None
    except utils.RevisionNotFoundError:
        raise MissingFileError(f"revision: expected a branch, tag or commit of {name}, got {revision!r}") from None
    except utils.LocalEntryNotFoundError as error:
        why = first_line(error)
        raise MissingFileError(
            f"{neither}, which is not a folder, was not fetched before, and cannot be fetched now: {why}"
        ) from None
    except Exception as error:
        # Errors of the connection are those of the client that huggingface_hub has, which is one or another.
        of_client = type(error).__module__.startswith(("httpx", "httpcore", "requests"))
        if not (of_client or isinstance(error, OSError | ValueError)):
            raise
        raise MissingFileError(f"{neither}: {first_line(error)}") from None
    for file in files:
        if not (folder / file).is_file():
            raise FormatError(f"name: expected a model of caan, got {name!r}, which has no {file}")
    return folder
