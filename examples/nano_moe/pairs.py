"""Write nano's emoji as ordinary pairs: PNG files and JSON Lines that name them, one style after another.

    python examples/nano_moe/pairs.py DATA PAIRS

DATA is what examples/nano/prepare.py and tokenizer.py wrote. PAIRS gets

    training.jsonl     Fluent Emoji's four styles, Firefox OS Emoji and flag-icons; the names that nano never trains are left out
    noto.jsonl         Noto Emoji, a style that is not in training.jsonl, of names that are
    twemoji.jsonl      Twemoji, the same
    names.json         every emoji name: the answers to choose from
    tokenizer.json     nano's, whose texts now end in <end>: a canonical text tower pools there
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, processors

LEARNED = ("fluent-3d", "fluent-flat", "fluent-modern", "fluent-black", "fxemoji", "flag-icons")
UNSEEN = ("noto", "twemoji")
END = "<end>"


def write(data: Path, output: Path) -> None:
    """All of the above; what is there is written anew."""
    training, unseen = (json.loads((data / f"{name}.json").read_text()) for name in ("training", "unseen"))
    stored = {name: np.load(data / f"{name}.npy", mmap_mode="r") for name in ("training", "unseen")}
    rows: dict[str, list[dict[str, Any]]] = {"training": [], "noto": [], "twemoji": []}
    learned = {item["name"] for item in training if item["style"] in LEARNED and item["split"] == "train"}
    for source, items in (("training", training), ("unseen", unseen)):
        for row, item in enumerate(items):
            style, name = item["style"], item["name"]
            list_name = "training" if style in LEARNED else style
            if list_name in rows and name in learned:
                path = Path(style, f"{item['key']}.png")
                (output / style).mkdir(parents=True, exist_ok=True)
                Image.fromarray(stored[source][row]).save(output / path)
                rows[list_name].append({"image": str(path), "caption": name})
    for name, found in rows.items():
        (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    emoji = sorted({item["name"] for item in (*training, *unseen) if item["style"] != "clip-art"})
    (output / "names.json").write_text(json.dumps(emoji))
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    tokenizer.add_special_tokens([END])
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    tokenizer.save(str(output / "tokenizer.json"))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
