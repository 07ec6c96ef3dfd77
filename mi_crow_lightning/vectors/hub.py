"""Steering vectors on the Hugging Face Hub: one safetensors file and a model card in a repository.

What comes from there is a file that somebody else wrote: a large one is refused before it is fetched, and whatever it
holds is read as any other file is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shortened, shown
from mi_crow_lightning._tables import listed_names
from mi_crow_lightning.errors import HubError

__all__ = ["FILE", "fetched", "pushed"]

FILE = "steering_vector.safetensors"
"""The name of a vector's file in a repository."""

_CARD = "README.md"
_MOST_BYTES = 2**30  # of a file: a hundred layers of width 16,384 take 7 MB


def pushed(
    repo_id: str,
    content: bytes,
    card: Callable[[str], str] | None,
    *,
    filename: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    endpoint: str | None,
    **commit: Any,
) -> Any:
    """Put a vector's file into a repository, which is made if there is none, in one commit.

    Args:
        repo_id: the repository.
        content: the file.
        card: the text of the model card from the full name of the repository; ``None`` to leave the card as it is.
        filename: the name of the file there.
        private: see huggingface_hub's ``HfApi.create_repo``.
        token: see ``HfApi``.
        revision: the branch, which is made if there is none.
        endpoint: the address of the Hub.
        **commit: ``commit_message`` and ``create_pr``, see ``HfApi.create_commit``.

    Returns:
        huggingface_hub's ``CommitInfo``: the URL of the commit.

    Raises:
        HubError: it cannot be written.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with _one_error(repo_id, endpoint, "written"):
        api = HfApi(endpoint=endpoint, token=token, library_name="mi_crow_lightning")
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        files = {filename: content} | ({} if card is None else {_CARD: card(repo_id).encode()})
        operations = [CommitOperationAdd(name, data) for name, data in files.items()]
        return api.create_commit(repo_id, operations, revision=revision, **commit)


def fetched(repo_id: str, filename: str | None, endpoint: str | None, **options: Any) -> Path:
    """Fetch a vector's file into the cache of huggingface_hub, and return its path there.

    Args:
        repo_id: the repository.
        filename: the name of the file; ``None`` for `FILE`, or else the only safetensors file.
        endpoint: the address of the Hub.
        **options: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only``, see
            huggingface_hub's ``hf_hub_download``.

    Raises:
        HubError: there is no such repository or file, it is too large, or the Hub cannot be reached.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _one_error(repo_id, endpoint, "read"):
        try:
            return _download(repo_id, filename or FILE, endpoint, options)
        except LocalEntryNotFoundError:  # the Hub was not asked
            raise
        except EntryNotFoundError:
            pass
        return _download(repo_id, _other_file(repo_id, filename, endpoint, options), endpoint, options)


def _download(repo_id: str, filename: str, endpoint: str | None, options: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    local = bool(options.get("local_files_only"))
    unreachable = None if local else _check_size(repo_id, filename, endpoint, options)
    options = {**options, "endpoint": endpoint, "local_files_only": local or unreachable is not None}
    try:
        return Path(hf_hub_download(repo_id, filename, library_name="mi_crow_lightning", **options))
    except LocalEntryNotFoundError as error:
        raise (unreachable or error) from None


def _check_size(repo_id: str, filename: str, endpoint: str | None, options: dict[str, Any]) -> Exception | None:
    """Refuse a large file; return the error if the Hub cannot be reached, when the file may still be in the cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url = hf_hub_url(repo_id, filename, revision=options.get("revision"), endpoint=endpoint)
    try:
        size = get_hf_file_metadata(url, token=options.get("token"), endpoint=endpoint).size
    except HfHubHTTPError:
        raise
    except (OSError, _connection_error()) as error:
        return error
    if size is not None and size > _MOST_BYTES:
        raise HubError(
            f"{filename!r} of {shown(repo_id)} on the Hub has {size:,} bytes, and a vector has at most {_MOST_BYTES:,}"
        )
    return None


def _other_file(repo_id: str, filename: str | None, endpoint: str | None, options: dict[str, Any]) -> str:
    """Return the only safetensors file of a repository that has none of the wanted name."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=options.get("token"))
    files = api.list_repo_files(repo_id, revision=options.get("revision"))
    vectors = sorted(name for name in files if name.endswith(".safetensors"))
    if filename is not None:
        has = f"it has {listed_names(vectors, 8)}" if vectors else "and no safetensors file at all"
        raise HubError(f"{shown(repo_id)} on the Hub has no file {shown(filename)}: {has}")
    if not vectors:
        has = listed_names(files, 8) or "nothing"
        raise HubError(
            f"{shown(repo_id)} on the Hub has no safetensors file, and a vector is one: it has {has}. "
            "SteeringVector.push_to_hub writes one"
        )
    if len(vectors) > 1:
        raise HubError(
            f"{shown(repo_id)} on the Hub has {len(vectors)} safetensors files, {listed_names(vectors, 8)}: give "
            "filename="
        )
    return vectors[0]


@contextmanager
def _one_error(repo_id: str, endpoint: str | None, done: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into an error that names the repository and what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HubError:
        raise
    except (HfHubHTTPError, OSError, ValueError, RuntimeError, _connection_error()) as error:
        reason = shortened(_reason(error, done), 400)
        message = f"{shown(repo_id)} on {endpoint or 'the Hub'} cannot be {done}: {reason}"
        raise HubError(message) from error


def _reason(error: BaseException, done: str) -> str:
    """Return why, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "its owner gives access on request: ask for it on its page, then give token=, or `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private: check the name, or give token=, or `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision: give revision= a branch, a tag or a commit of it"
    if status in (401, 403):
        return "you may not: give token= of an account that has the right to write, or `hf auth login`"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the file is not in the cache: leave local_files_only out, to fetch it"
    if status is None and isinstance(error, (errors.OfflineModeIsEnabled, _connection_error())):
        cached = "" if done == "written" else ", and the file is not in the cache"
        return f"the Hub cannot be reached{cached}: connect, or unset HF_HUB_OFFLINE. ({message_of(error)})"
    cause = f" ({message_of(error.__cause__)})" if error.__cause__ is not None else ""
    return f"{message_of(error)}{cause}"


def _connection_error() -> type[Exception]:
    """Return the class of errors of the HTTP library that huggingface_hub uses: requests before 1.0, then httpx."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base
