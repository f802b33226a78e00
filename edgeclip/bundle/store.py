"""Bundles on disk: seal a folder into one, open one, check every hash, pack it into a zip.

A bundle is immutable once sealed. Opening checks the manifest's own digest, every path and every size, which is instant;
`check_hashes` reads every byte.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgeclip.bundle.detectors import check_detector
from edgeclip.bundle.manifest import FileEntry, Manifest, Variant
from edgeclip.errors import BundleError, CheckFailed, InputError
from edgeclip.files import cache_folder, new_folder, sha256_file, write_file

MANIFEST = "bundle.json"
# bundles that ship in the wheel, by name: edgeclip/assets/<name>/
EMBEDDED = Path(__file__).parent.parent / "assets"
MAX_MANIFEST_BYTES = 16 << 20
MAX_ZIP_BYTES = 32 << 30


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it lies and what it says."""

    root: Path
    manifest: Manifest
    digest: str  # of the manifest as it was written

    def path(self, name: str) -> Path:
        """Absolute path of one of the bundle's files. Raises BundleError for a name that it does not list."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.root}: the manifest lists no file {name!r}.")
        return self.root / name

    def keep_clear(self, output: Path) -> None:
        """Raise InputError for an output that would replace this bundle: itself, or a folder around it."""
        place = output.resolve()
        if self.root.is_relative_to(place):
            what = "is" if place == self.root else "holds"
            raise InputError(
                f"{output}: {what} the bundle itself, and a bundle never changes. Choose another output."
            )

    @property
    def spec(self) -> str:
        """What `open_bundle` opens it by in another process."""
        return self.root.name if self.root.parent == EMBEDDED.resolve() else str(self.root)

    @property
    def size_bytes(self) -> int:
        """Of all files that the manifest lists."""
        return sum(entry.size for entry in self.manifest.files.values())

    @property
    def cache(self) -> Path:
        """The folder for what this machine adds (engines, local reports). Not created here."""
        return cache_folder() / self.digest


def seal(folder: Path, manifest: Manifest) -> Bundle:
    """Write `bundle.json` over the files that lie in `folder`, with their sizes and hashes, and open the result.

    Args:
        folder: holds the graphs, weights, tokenizer and golden files in their places.
        manifest: everything but `files`, which is filled here.
    """
    files = {
        name: FileEntry(path.stat().st_size, sha256_file(path))
        for name, path in _regular_files(folder)
        if name != MANIFEST
    }
    write_file(folder / MANIFEST, replace(manifest, files=files).to_json())
    return open_bundle(folder)


def open_bundle(where: str | Path, cache: Path | None = None) -> Bundle:
    """Open a bundle without reading its large files.

    Args:
        where: a folder, a .zip (unpacked once into the cache), "hf:ORG/NAME" (downloaded once into the cache), or the
            name of an embedded bundle ("nano"). A folder of that name in the working directory does not hide the
            embedded one: write ./nano for it.
        cache: the folder for what is unpacked or downloaded; None: `cache_folder()`.
    Raises:
        BundleError: missing, damaged, edited, linked, of another format; says which file.
    """
    if str(where) in embedded_names():
        # Some installers hard-link package files from their cache; the package itself is trusted like its code.
        return _open_folder(EMBEDDED / str(where), links_allowed=True)
    if str(where).startswith("hf:"):
        from edgeclip.bundle.hub import pull_to_cache  # late: only a Hub id may load the network library

        return pull_to_cache(str(where), cache)
    path = Path(where)
    if path.is_file() and path.suffix == ".zip":
        return _open_zip(path, cache or cache_folder())
    if not path.is_dir():
        embedded = ", ".join(embedded_names()) or "none"
        raise BundleError(
            f"{where}: no such bundle. Expected a bundle folder, a .zip of one, or an embedded name ({embedded})."
        )
    return _open_folder(path)


def embedded_names() -> list[str]:
    """Names of the bundles that ship with edgeclip."""
    return sorted(path.parent.name for path in EMBEDDED.glob(f"*/{MANIFEST}"))


def check_hashes(bundle: Bundle, names: Iterable[str] | None = None) -> None:
    """Read files of the bundle, all or those named, and compare their SHA-256. Raises CheckFailed that names the first wrong file."""
    for name in bundle.manifest.files if names is None else names:
        entry = bundle.manifest.files[name]
        if (found := sha256_file(bundle.root / name)) != entry.sha256:
            raise CheckFailed(
                f"{bundle.root / name}: SHA-256 is {found[:12]}..., the manifest says {entry.sha256[:12]}.... "
                "The file was changed or damaged: export or pull the bundle again."
            )


def pack_zip(bundle: Bundle, output: Path) -> None:
    """Write the bundle as one zip file, stored and not compressed. Raises CheckFailed if a file does not match its hash."""
    check_hashes(bundle)
    scratch = output.with_name(f".{output.name}.part")
    try:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
            for name in [MANIFEST, *bundle.manifest.files]:
                archive.write(bundle.root / name, name)
        scratch.replace(output)
    finally:
        scratch.unlink(missing_ok=True)


def _open_folder(root: Path, links_allowed: bool = False) -> Bundle:
    file = root / MANIFEST
    if not file.exists():
        raise BundleError(
            f"{root}: no {MANIFEST} in it. Expected a bundle folder, made by `edgeclip export` or `edgeclip pull`."
        )
    _check_file(root, MANIFEST, None, links_allowed)
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{file}: {file.stat().st_size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}."
        )
    manifest, digest = _read_manifest(file.read_bytes(), str(file))
    for name, entry in manifest.files.items():
        _check_file(root, name, entry, links_allowed)
    _check_references(manifest, str(file))
    check_detector(manifest, str(file))
    return Bundle(root.resolve(), manifest, digest)


def _read_manifest(raw: bytes, where: str) -> tuple[Manifest, str]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BundleError(
            f"{where}: not UTF-8 text. The bundle is damaged: export or pull it again."
        ) from error
    return Manifest.from_json(text, where), Manifest.stated_digest(text)


def _check_file(root: Path, name: str, entry: FileEntry | None, links_allowed: bool) -> None:
    """Refuse paths that leave the folder, links, anything but regular files, and wrong sizes."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise BundleError(f"{root / MANIFEST}: file name {name!r} leaves the bundle.")
    for depth in range(1, len(parts)):
        if (root / Path(*parts[:depth])).is_symlink():
            raise BundleError(
                f"{root / Path(*parts[:depth])}: is a symbolic link; a bundle holds only plain files."
            )
    try:
        found = (root / name).lstat()
    except FileNotFoundError:
        raise BundleError(
            f"{root / name}: missing. The bundle is incomplete: export or pull it again."
        ) from None
    if not stat.S_ISREG(found.st_mode) or (found.st_nlink > 1 and not links_allowed):
        raise BundleError(
            f"{root / name}: is a link or a special file; a bundle holds only plain files. Copy it instead."
        )
    if entry is not None and found.st_size != entry.size:
        raise BundleError(
            f"{root / name}: {found.st_size} bytes, the manifest says {entry.size}. "
            "The bundle is damaged or half copied: export or pull it again."
        )


def _check_references(manifest: Manifest, where: str) -> None:
    """Every file that a field of the manifest names must be listed, and so be checked."""
    wanted = [name for variant in manifest.variants for name in variant.files]
    wanted += [variant.labels for variant in manifest.variants if variant.labels]
    wanted += [name for name in (manifest.golden, manifest.codecs) if name]
    wanted += [*manifest.reports, *([manifest.text.tokenizer] if manifest.text else [])]
    for name in wanted:
        if name not in manifest.files:
            raise BundleError(f"{where}: refers to {name!r}, which `files` does not list.")


def check_again(bundle: Bundle, variant: Variant) -> None:
    """Look at a variant's files once more just before an engine reads them.

    Also refuses unlisted files beside the graph: a graph may name any of its neighbours as its weights.
    Raises:
        BundleError: a file was changed, linked or added since the bundle was opened.
    """
    embedded = bundle.root.is_relative_to(EMBEDDED.resolve())
    for name in variant.files:
        _check_file(bundle.root, name, bundle.manifest.files[name], links_allowed=embedded)
    for path in (bundle.root / variant.files[0]).parent.iterdir():
        if not path.is_dir() and path.relative_to(bundle.root).as_posix() not in (
            MANIFEST,
            *bundle.manifest.files,
        ):
            raise BundleError(
                f"{path}: the manifest does not list this file. Remove it, or export the bundle again."
            )


def _regular_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise BundleError(f"{path}: is a symbolic link; a bundle holds only plain files.")
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _open_zip(path: Path, cache: Path) -> Bundle:
    """Unpack once into the cache, under the manifest's digest; only files that the manifest lists are taken."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if MANIFEST not in infos or infos[MANIFEST].file_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{path}: no {MANIFEST} at its top level. Expected a zipped bundle.")
            manifest, digest = _read_manifest(archive.read(MANIFEST), f"{path}: {MANIFEST}")
            target = cache / digest / "bundle"
            if target.exists():
                return _open_folder(target)
            _check_zip_sizes(path, infos, manifest)
            with new_folder(target, overwrite=True) as scratch:
                for name in [MANIFEST, *manifest.files]:
                    write_file(scratch / name, archive.read(name))
                check_hashes(_open_folder(scratch))
    except (zipfile.BadZipFile, EOFError) as error:
        raise BundleError(f"{path}: not a whole zip file ({error}). Copy or download it again.") from error
    target.parent.chmod(0o700)
    return _open_folder(target)


def _check_zip_sizes(path: Path, infos: dict[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    total = 0
    for name, entry in manifest.files.items():
        info = infos.get(name)
        if info is None or info.file_size != entry.size or info.compress_type != zipfile.ZIP_STORED:
            raise BundleError(
                f"{path}: {name!r} is missing, compressed, or not of the {entry.size} bytes that the manifest says."
            )
        total += entry.size
    if total > MAX_ZIP_BYTES:
        raise BundleError(f"{path}: unpacks to {total} bytes; the cap is {MAX_ZIP_BYTES}.")
