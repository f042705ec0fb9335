"""``hf://``: weights on the Hugging Face Hub, with the cache and settings of huggingface_hub."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from fnmatch import filter as select_names
from pathlib import Path
from types import ModuleType
from typing import Any

from mmevit.utils.errors import CheckpointError, one_line, shorten, walk_causes

ADDRESS = re.compile(r'hf://([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@(.+))?')
# File names of weights. The first pattern that any file matches is loaded.
PREFERRED = 'model.safetensors'
WEIGHT_FILES = (PREFERRED, '*.safetensors', 'pytorch_model.bin', '*.pth')


def download_from_hub(address: str) -> Path:
    """Download weights into the cache of huggingface_hub, unless they are there.

    Args:
        address: ``hf://OWNER/REPO[/FILE][@REVISION]``. Without a file, the weights of the
            repository are found by their name, first ``.safetensors``.

    Raises:
        CheckpointError: If huggingface_hub is not installed, or the weights cannot be found,
            accessed or downloaded.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise CheckpointError(
            f'{address} is not valid. Write hf://OWNER/REPO, and optionally /FILE and @REVISION.'
        )
    repo, file, revision = match.groups()
    hub = import_hub(address).HfApi()
    with explain_hub_errors(address):
        file = file or find_weights(hub, address, repo, revision)
        return Path(hub.hf_hub_download(repo, file, revision=revision))


def import_hub(what: str) -> ModuleType:
    """Import huggingface_hub, or raise CheckpointError that ``what`` needs it."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f'{what} needs {error.name}, which is not installed. Run pip install "mmevit[hub]".'
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def explain_hub_errors(address: str) -> Iterator[None]:
    """Reraise the errors of huggingface_hub as CheckpointError, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f'{address} is gated. Request access on its page, and log in with hf auth login or set '
            'HF_TOKEN.'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f'The repository of {address} does not exist or is private. Check the name; for a '
            'private one, log in with hf auth login or set HF_TOKEN.'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f'The revision of {address} does not exist. Pass a branch, tag or commit.'
        ) from error
    except errors.LocalEntryNotFoundError as error:
        *_, root = walk_causes(error)  # below the errors of requests and urllib3
        raise CheckpointError(
            f'{address} is not cached, and the Hugging Face Hub cannot be reached '
            f'({one_line(root)}). Check the connection, HF_ENDPOINT and '
            'HF_HUB_OFFLINE.'
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(
            f'The file of {address} does not exist. Check its name, or leave it out.'
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise CheckpointError(f'{address} cannot be accessed: {one_line(error)}') from error


def find_weights(hub: Any, address: str, repo: str, revision: str | None) -> str:
    """Find the file of the weights in a repository, or in the cache if the hub is unreachable."""
    from huggingface_hub import errors

    try:
        hub.hf_hub_download(repo, PREFERRED, revision=revision)
        return PREFERRED
    except errors.LocalEntryNotFoundError:
        files = list_cached_files(hub, repo, revision)
        if not any(select_names(files, pattern) for pattern in WEIGHT_FILES):
            raise
    except errors.EntryNotFoundError:
        files = hub.list_repo_files(repo, revision=revision)
    return choose_weights(address, files)


def list_cached_files(hub: Any, repo: str, revision: str | None) -> list[str]:
    """List the files of a repository that have been downloaded before."""
    from huggingface_hub import errors

    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return []
    return [str(path.relative_to(folder)) for path in folder.rglob('*')]


def choose_weights(address: str, files: Iterable[str]) -> str:
    """Choose the file of the weights, or raise CheckpointError if none or several may be meant."""
    for pattern in WEIGHT_FILES:
        found = sorted(select_names(files, pattern))
        if len(found) > 1:
            raise CheckpointError(
                f'{address} has several files of weights: {shorten(found)}. Append the name of one '
                'to the address.'
            )
        if found:
            return found[0]
    raise CheckpointError(
        f'{address} has no weights: neither .safetensors nor pytorch_model.bin nor .pth.'
    )
