"""Files of Hub repositories, through huggingface_hub's own cache."""

from __future__ import annotations

from pathlib import Path

from edgeclip.errors import SourceError
from edgeclip.models.source import Request


def download(repo: str, request: Request, patterns: list[str], ignore: list[str] | None = None) -> Path:
    """The folder with files of a repository (HF_HOME, HF_HUB_OFFLINE and tokens as huggingface_hub has them).

    Raises:
        SourceError: no such repository, no access, or it is not in the cache and the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    spec = request.spec
    try:
        return Path(
            snapshot_download(
                repo, revision=request.revision, allow_patterns=patterns, ignore_patterns=ignore
            )
        )
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{spec}: no such repository on the Hub, or it is private: log in with `hf auth login`."
        ) from error
    except HFValidationError as error:
        raise SourceError(f"{spec}: expected ORG/NAME after the colon, got {repo!r}.") from error
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{spec}: not in the local cache, and the Hub cannot be reached. Fetch it where there is a network."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"{spec}: the Hub refused ({reason}). Check the name, your access and the network."
        ) from error
