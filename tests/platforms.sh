#!/bin/sh
# Resolve the runtime's wheels for the boards' Pythons: JetPack 6 (cp310) and JetPack 7 / Ubuntu 24.04 (cp312), aarch64.
set -eu
python=$1
for version in 3.10 3.12; do
  set --
  for glibc in 17 24 26 27 28 31 34 35; do set -- "$@" --platform "manylinux_2_${glibc}_aarch64"; done
  wanted=$($python - <<'END'
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(" ".join(project["dependencies"] + project["optional-dependencies"]["cpu"]))
END
)
  # shellcheck disable=SC2086 # one requirement a word
  $python -m pip install --dry-run --quiet --ignore-installed --only-binary=:all: --target /nowhere \
    --implementation cp --python-version "$version" "$@" --platform manylinux2014_aarch64 $wanted
  echo "aarch64 cp${version}: every wheel of base + cpu exists"
done
