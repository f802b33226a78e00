"""Boxes for pictures that have captions only: an open-vocabulary detector looks for what each caption speaks of.

python pseudo_regions.py pairs.csv -b DETECTOR -o regions.jsonl
edgeclip train cloc --set data=regions.jsonl ...

PAIRS is what `edgeclip train` reads, if its pictures are files: a folder, .csv, .tsv or .jsonl. The phrases come from no tagger: a caption
is cut at punctuation and at small words, and every run of up to three words in between is asked for; which of them name something that
is there, the detector's scores decide, and of the phrases for one place the best one stays. English captions only.
Source: the idea is CLOC's (arXiv:2410.02746, section 4), which takes the noun phrases of a tagger and OWLv2's boxes above 0.1.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgeclip
from edgeclip.files import write_file
from edgeclip.models.training.data import open_pairs

MOST = 20  # phrases that a picture is asked for
LONGEST = 3  # words
# What stands between noun phrases: articles, pronouns, prepositions, conjunctions, auxiliaries, numbers, and words of captions.
SMALL = """
a an the this that these those some any each every all both another other its his her their our my your it he she they we i you who
which there here of in on at by to from with without into onto over under above below behind beside between near next along across
around through against inside outside up down off out for as than and or but while when where is are was were be been being has have
had do does did can could will would may very several many few lots lot one two three four five six seven eight nine ten
photo picture image drawing view showing shows front top side back left right
"""
_SMALL = frozenset(SMALL.split())


def phrases(caption: str) -> list[str]:
    """What to look for: runs of up to three words between small words and punctuation, longer ones first within each."""
    found: dict[str, None] = {}
    for part in re.split(r"[^\w\s'-]+", caption.lower()):
        runs: list[list[str]] = [[]]
        for word in re.findall(r"[^\W\d_][\w'-]*", part):
            if word in _SMALL:
                runs.append([])
            else:
                runs[-1].append(word)
        for run in runs:
            for size in range(min(LONGEST, len(run)), 0, -1):
                found |= dict.fromkeys(" ".join(run[i : i + size]) for i in range(len(run) - size + 1))
    return list(found)[:MOST]


def regions(model: Any, pairs: Any, threshold: float) -> Iterator[dict[str, Any]]:
    """One row for each picture that can be read; `image` is its path."""
    for index, key in enumerate(pairs.keys):
        try:
            picture, captions = pairs.read(index)
            if not isinstance(picture, Path):
                raise edgeclip.InputError(f"{key}: expected pictures that are files. Unpack the shards.")
            asked = phrases(". ".join(captions))
            found = model.detect(picture, asked, threshold=threshold, class_agnostic=True) if asked else None
        except (edgeclip.InputError, OSError) as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        rows = [] if found is None else zip(found.boxes.round(1).tolist(), found.names, strict=True)
        named = [{"box": box, "text": text} for box, text in rows if box[0] < box[2] and box[1] < box[3]]
        yield {"image": str(picture), "caption": list(captions), "regions": named}


def main() -> None:
    """Write the file and say how much was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs")
    parser.add_argument("-b", "--bundle", default="nano", help="a bundle that detects")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.1, help="smallest score of a box")
    settings = parser.parse_args()
    with edgeclip.load(settings.bundle) as model:
        rows = list(regions(model, open_pairs(settings.pairs), settings.threshold))
    for row in rows:
        row["image"] = os.path.relpath(row["image"], settings.output.parent)
    write_file(settings.output, "".join(json.dumps(row) + "\n" for row in rows))
    count = sum(len(row["regions"]) for row in rows)
    print(f"{settings.output}: {count} boxes in {len(rows)} pictures")


if __name__ == "__main__":
    main()
