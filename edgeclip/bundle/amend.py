"""A bundle with everything that another one has, and some more files: what the model is stays the same. Needs neither torch nor onnx."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclip.bundle.store import Bundle, seal
from edgeclip.errors import CheckFailed
from edgeclip.files import new_folder, write_file


def amend(
    bundle: Bundle, output: Path, files: Mapping[str, bytes], *, overwrite: bool = False, **changes: Any
) -> Bundle:
    """Copy a bundle, add files to it and seal it. It appears whole or not at all.

    Args:
        files: by name; none that the bundle has already.
        changes: fields of the manifest to replace.
    Raises:
        InputError: the output is there, or is the bundle itself or a folder around it.
        CheckFailed: a file of the bundle does not match its hash, and would be sealed as if it did.
    """
    bundle.keep_clear(output)
    with new_folder(output, overwrite=overwrite) as scratch:
        for name in bundle.manifest.files:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), scratch / name)
        for name, content in files.items():
            write_file(scratch / name, content)
        made = seal(scratch, replace(bundle.manifest, **changes))
        for name, entry in bundle.manifest.files.items():
            if made.manifest.files[name] != entry:
                raise CheckFailed(
                    f"{bundle.root / name}: is not what the manifest says; it was changed or damaged. "
                    "Export or pull the bundle again."
                )
    return replace(made, root=output.resolve())
