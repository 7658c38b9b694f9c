"""The Hugging Face Hub: models found by name, fetched once and kept; folders published.

A model there is named ``owner/name``, or ``owner/name@revision`` for a branch, tag or commit. Only files that a model
needs are fetched, and no pickle among them. `huggingface_hub`, imported when a name is first used, says where files are
kept, and who is logged in (`hf auth login`, HF_TOKEN).
"""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plait.common.errors import CheckpointError, ConfigError, PlaitError, ResourceError, first_line, require

SHARDS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
WEIGHTS = ("config.json", *SHARDS)
MODEL = (*WEIGHTS, "generation.json", "codecs/*")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""Patterns of files: those that weights lie in, and what is fetched of a model without codecs, of one with them, and of
an adapter, where the first file must be there."""

_PART = r"[A-Za-z0-9_](?:[\w.-]*\w)?"
_NAME = re.compile(rf"(?P<name>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_name(place: str | Path) -> bool:
    """Say whether a place can only be a model on the Hub: a text ``owner/name`` where no folder ``owner`` is here."""
    return (
        isinstance(place, str)
        and _NAME.fullmatch(place) is not None
        and not Path(place).exists()
        and not Path(place).parts[0].startswith(".")
        and not Path(Path(place).parts[0]).exists()
    )


def found(place: str | Path, where: str, files: Sequence[str] = MODEL, revision: str = "", **options: Any) -> Path:
    """Return the folder of a model: ``place`` itself, or where the Hub's files of that name are kept.

    ``files`` are patterns of what is fetched, ``where`` begins errors, ``options`` are more for the library, such as
    cache_dir. Raises CheckpointError where the Hub has no such model, ConfigError for a ``revision`` of a folder, and
    ResourceError without the network or the package.
    """
    if is_name(place):
        return fetched(str(place), where, files, revision, **options)
    require(not revision, "revision", revision, f"left out: {str(place)!r} is a folder, not a name on the Hub")
    return Path(place).expanduser()


def fetched(name: str, where: str, files: Sequence[str], revision: str = "", **options: Any) -> Path:
    """Fetch a model from the Hub, or take what is kept of it; return its folder."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{where}: there is no folder {name!r}, and it is no name on the Hub such as owner/model")
    revision = revision or match["revision"] or ""
    with _said(name, where, revision, f"{name!r} is no folder here, and it cannot be fetched from the Hub"):
        hub = _hub(where)
        path = hub.snapshot_download(match["name"], revision=revision or None, allow_patterns=list(files), **options)
        folder = Path(path)
    if not (folder / files[0]).is_file() and "*" not in files[0]:
        raise CheckpointError(f"{where}: {name!r} on the Hub holds no {files[0]}")
    return folder


def published(
    folder: Path, name: str, *, private: bool = False, revision: str = "", message: str = "", where: str = "push"
) -> str:
    """Upload a folder as the model ``name`` of the Hub, in one commit, and return the commit's address.

    The repository is made where there is none. Where the folder is a model's, files of an earlier model there are
    removed with the same commit, so that no old shard stays beside new ones.
    """
    check_publishable(name, where)
    old = [*SHARDS, "codecs/*"] if (folder / MODEL[0]).is_file() else None
    with _said(name, where, revision, f"{name!r} cannot be published on the Hub"):
        api = _hub(where).HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)  # an owner's default holds
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision or None, delete_patterns=old,
            commit_message=message or "Upload with plait",
        )  # fmt: skip
    return str(commit.commit_url)


def pushed(name: str, write: Callable[[Path], None], *, private: bool, revision: str, message: str) -> str:
    """Publish what ``write`` writes into a folder, and return the commit's address (`published`)."""
    check_publishable(name)
    with tempfile.TemporaryDirectory(prefix="plait-push-") as folder:
        write(Path(folder))
        return published(Path(folder), name, private=private, revision=revision, message=message)


def check_publishable(name: str, where: str = "push") -> None:
    """Raise a ConfigError unless a name can be a model's on the Hub."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    require(match is not None and not match["revision"], where, name, "a name on the Hub such as owner/model")


def _hub(where: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        message = f"{where}: package 'huggingface_hub' is not installed, install it: pip install 'plait[hub]'"
        raise ResourceError(message) from None
    return huggingface_hub


@contextlib.contextmanager
def _said(name: str, where: str, revision: str, otherwise: str) -> Iterator[None]:
    """Turn the library's errors into one sentence each; ``otherwise`` is said of all that have no better one."""
    try:
        yield
    except PlaitError:
        raise
    except Exception as error:  # the library lets several others' through: clients', sockets', its own
        raise _sentence(error, name, where, revision, otherwise) from None


def _sentence(error: Exception, name: str, where: str, revision: str, otherwise: str) -> PlaitError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"{where}: {name!r} is no name on the Hub such as owner/model ({first_line(error)})")
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(f"{where}: {name!r} is gated: accept its licence on its page, and {_LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{where}: {name!r} on the Hub has no revision {revision or 'main'!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{where}: there is no folder and no model on the Hub {name!r}, or it is private: {_LOG_IN}"
        )
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        return ResourceError(f"{where}: the Hub does not know who you are, {_LOG_IN}")
    if status == 403:
        return ResourceError(f"{where}: you may not write to {name!r} on the Hub, take a name of your own")
    reason = f"{type(error).__name__}: {first_line(error)}"
    return ResourceError(f"{where}: {otherwise} ({reason}); try again with a network")
