"""One writer: a lock that the system lets go of when its process ends, however that is."""

from __future__ import annotations

import os
from pathlib import Path

from edgeclip.errors import InputError

NAME = "lock"


class WriteLock:
    """Held from making to `release`. The file stays; it holds the process id, for the message that another writer gets.

    Raises:
        InputError: another writer holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # late: only POSIX has it, and readers need none

        try:
            self._file = (folder / NAME).open("a+b", buffering=0)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}). Open it for reading only, or copy it to where it can be."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read(20).decode(errors="replace")
            self.release()
            if not isinstance(error, BlockingIOError):
                raise InputError(
                    f"{folder / NAME}: cannot be locked ({error.strerror}). Put the index on a local disk."
                ) from error
            raise InputError(
                f"{folder}: process {holder} writes to this index, and only one may. Wait until it has ended."
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())

    def release(self) -> None:
        """Let go. In a forked child this closes its copy, and the parent goes on holding the lock."""
        self._file.close()
