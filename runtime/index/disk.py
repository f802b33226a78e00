"""The only place in an index that changes files, so that a test can note every change, lose some and look what is left."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path


class Disk:
    """Changes to files. None of them is on the disk before it is synced: content by `sync`, names by `sync_folder`."""

    def mkdir(self, path: Path) -> None:
        """A folder; its name lasts once the folder around it is synced."""
        path.mkdir()

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """A whole file, new or over one that no manifest names."""
        with path.open("wb") as stream:
            stream.write(data)

    def opened(self, path: Path) -> FileIO:
        """A handle for `append` and `truncate`; nothing is changed yet."""
        return path.open("ab", buffering=0)

    def append(self, handle: FileIO, data: bytes) -> None:
        """Bytes behind the last one. After an OSError some of them may be there."""
        rest = memoryview(data)
        while rest:
            rest = rest[handle.write(rest) :]

    def truncate(self, handle: FileIO, size: int) -> None:
        """Cut a file down to `size` bytes."""
        os.ftruncate(handle.fileno(), size)

    def sync(self, target: FileIO | Path) -> None:
        """Return when a file's content will outlive a power cut."""
        if isinstance(target, Path):
            self._sync(target)
        else:
            os.fsync(target.fileno())

    def adopt(self, path: Path) -> None:
        """Sync a file that was written without this class."""
        self._sync(path)

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder, new, moved and gone, will outlive a power cut."""
        self._sync(path)

    def rename(self, path: Path, target: Path) -> None:
        """Move a file, over the one that is there: whoever looks sees the old one or the new one."""
        path.replace(target)

    def unlink(self, path: Path) -> None:
        """Take a file's name away. Who has it open or mapped goes on."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that lies in it; a link is removed, not followed."""
        if path.is_symlink() or not path.is_dir():
            self.unlink(path)
            return
        for inner in list(path.iterdir()):
            self.remove(inner)
        self.rmdir(path)

    @staticmethod
    def _sync(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
