#!/bin/sh
# Resolve the runtime's wheels for the boards' Pythons: JetPack 6 (cp310) and JetPack 7 / Ubuntu 24.04 (cp312), aarch64; once
# with the newest versions, once with those that docker/constraints-jetson.txt pins.
set -eu
python=$1
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
for version in 3.10 3.12; do
  set -- --platform manylinux2014_aarch64
  for glibc in 17 24 26 27 28 31 34 35; do set -- "$@" --platform "manylinux_2_${glibc}_aarch64"; done
  # pip asks the Python that runs it, not --python-version, which lines of a constraints file are meant
  wanted=$($python - "$version" "$pins" <<'END'
import sys
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
version, pins = sys.argv[1:]
lines = [line for line in Path("docker/constraints-jetson.txt").read_text().splitlines() if line[:1] not in ("", "#")]
meant = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate({"python_version": version})]
Path(pins).write_text("".join(f"{one.name}{one.specifier}\n" for one in meant))
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
cuda = "cuda-bindings<13" if version == "3.10" else "cuda-bindings>=13"  # what JetPack's driver serves
print(" ".join([*project["dependencies"], *extras["cpu"], *extras["tensorrt"], cuda]))
END
)
  for constraints in /dev/null "$pins"; do
    # shellcheck disable=SC2086 # one requirement a word
    $python -m pip install --dry-run --quiet --ignore-installed --only-binary=:all: --target /nowhere \
      -c "$constraints" --implementation cp --python-version "$version" "$@" $wanted
  done
  echo "aarch64 cp${version}: every wheel of base + cpu + tensorrt exists, newest and pinned"
done
