#!/bin/sh
# The main job on real pictures, with the embedded model and nothing downloaded: classify, embed, search, detect.
set -eu
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")"
out=$(mktemp -d)  # another copy of the project may have shown its pictures here before
show() { printf '\n$ edgeclip'; printf ' %s' "$@"; printf '\n'; "$bin/edgeclip" "$@"; }
show classify pictures --labels @labels.txt --top-k 3
show embed pictures -o "$out/demo.npz"
show search pictures "a red fruit" -k 3
show index build pictures -o "$out/demo.index"
show search "$out/demo.index" "a vehicle" --not "a bicycle" -k 3
show detect scenes/park.png --prompts 'a poodle, a sparkler, a moon, socks' --threshold 0.2
printf '\n$ python examples/rank_folder.py examples/pictures "a vehicle"\n'
"$bin/python" rank_folder.py pictures "a vehicle"
