"""What is said of experts, in the terminal as on a page."""

from __future__ import annotations

from edgeclip.bench.render.words import a_few, percent
from edgeclip.runtime.experts import ExpertUse

HARDLY = 0.1  # of what an expert has where all are used alike: below it, it is hardly used
NAMED = 12  # experts that a warning names

OF_PICTURES = (
    "Pictures are shown as the tower sees them: resized, and cropped or padded, as the bundle says. "
    "A patch has the colour and the number of the expert with the largest share. "
    "The class token has no place in the picture; it counts in the figures."
)
LAST = (
    "Every token counts, but for padding. A model that pools one token reads only that one behind its last block, "
    "so there the other tokens' choices change no embedding."
)


def in_brief(use: ExpertUse) -> str:
    """ "image tower: 12 blocks of 4 experts, 2 for each token; 64 pictures, 12,608 tokens"."""
    experts = sorted(set(use.experts))
    each = f"{experts[0]}" if len(experts) == 1 else f"{experts[0]} to {experts[-1]}"
    what = a_few(use.samples, "picture" if use.tower == "image" else "text")
    skipped = f", {use.skipped:,} skipped" if use.skipped else ""
    return (
        f"{use.tower} tower: {a_few(len(use.blocks), 'block')} of {each} experts, {use.top_k} for each token; "
        f"{what}{skipped}, {a_few(use.tokens, 'token')}"
    )


def part(share: float) -> str:
    """ "31 %"; "0" only for nothing at all."""
    return percent(share) if share else "0"


def warnings(use: ExpertUse) -> list[str]:
    """One line for the experts that were never used, one for those that hardly were."""
    if not use.samples:
        return []
    few = [
        (block, expert, share)
        for block, expert, share in use.below(HARDLY)
        if share <= HARDLY / use.experts[use.blocks.index(block)]
    ]
    never = [f"{block}/{expert}" for block, expert, share in few if share == 0]
    hardly = [f"{block}/{expert} ({percent(share)})" for block, expert, share in few if share > 0]
    found = []
    for names, how in ((never, "never used"), (hardly, "hardly used")):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            found.append(
                f"{use.tower} tower: {a_few(len(names), 'expert')} {how} (block/expert): {', '.join(names[:NAMED])}{more}. "
                f"If {'pictures' if use.tower == 'image' else 'texts'} like these are all that it will see, "
                "`edgeclip experts SOURCE --prune-below` makes a smaller model."
            )
    return found
