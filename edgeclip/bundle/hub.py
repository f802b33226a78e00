"""Bundles on the Hugging Face Hub. The only module that reaches the network, and only when a Hub id was named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeclip.bundle.store import Bundle, check_hashes, open_bundle
from edgeclip.errors import BundleError, EdgeClipError, InputError
from edgeclip.files import cache_folder, new_folder

PREFIX = "hf:"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def repo_id(name: str) -> str:
    """`hf:ORG/NAME` or `ORG/NAME` -> `ORG/NAME`. Raises InputError for anything else."""
    bare = name.removeprefix(PREFIX)
    if not _REPO.fullmatch(bare):
        raise InputError(f"{name}: expected a Hub id of the form ORG/NAME.")
    return bare


def pull(name: str, output: Path, *, revision: str | None = None, overwrite: bool = False) -> Bundle:
    """Download a bundle, check every hash, and only then put it in its place.

    Args:
        name: ORG/NAME, with or without "hf:".
        revision: branch, tag or commit; default is the repository's main branch.
    Raises:
        BundleError: the repository cannot be reached or holds no bundle.
        CheckFailed: a file does not match its hash.
    """
    hub, repo = _library(), repo_id(name)
    with new_folder(output, overwrite=overwrite) as scratch:
        try:
            hub.snapshot_download(repo, revision=revision, local_dir=scratch)
        except Exception as error:  # the library raises its own, HTTP's and the system's errors
            raise BundleError(f"{name}: cannot download from the Hub: {_first_line(error)}") from error
        try:
            _drop_strangers(scratch)
            check_hashes(open_bundle(scratch))
        except EdgeClipError as error:  # the scratch folder's name would tell nobody anything
            message = str(error).replace(str(scratch.resolve()), str(scratch))
            raise type(error)(message.replace(str(scratch), f"{name} on the Hub")) from error
    return open_bundle(output)


def pull_to_cache(name: str, cache: Path | None = None) -> Bundle:
    """The bundle of a Hub id from this machine's cache, downloaded on first use. Never asks the network again."""
    target = (cache or cache_folder()) / "hub" / repo_id(name).replace("/", "--")
    return open_bundle(target) if target.exists() else pull(name, target)


def push(bundle: Bundle, name: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a bundle whose hashes are right. Makes the repository when it is not there. Returns the commit's address."""
    hub = _library()
    check_hashes(bundle)
    repo = repo_id(name)
    try:
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=bundle.root,
            revision=revision,
            allow_patterns=["bundle.json", *bundle.manifest.files],  # nothing else that lies in the folder
            commit_message=f"edgeclip bundle {bundle.manifest.name} {bundle.digest[:12]}",
        )
    except Exception as error:  # as above
        raise BundleError(f"{name}: cannot upload to the Hub: {_first_line(error)}") from error
    return str(commit.commit_url)


def _drop_strangers(folder: Path) -> None:
    """Remove what the repository holds beside the bundle (README, .gitattributes, the library's own records)."""
    import shutil

    listed = {*open_bundle(folder).manifest.files, "bundle.json"}
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in listed:
            path.unlink()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _library() -> Any:
    import huggingface_hub

    return huggingface_hub
