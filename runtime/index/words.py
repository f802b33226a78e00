"""Words of captions that may name what a picture shows: the rules of vocabulary-free classification, without a tagger.

Source: Conti et al. 2023, Vocabulary-free Image Classification (CaSED), arXiv:2306.00917, appendix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

Tagger = Callable[[str], bool]  # whether a word is a noun, an adjective or an -ing verb
NOTHING = "object"  # what is left of captions without a usable word

_DROPPED = re.compile(
    r"<[^>]*>"  # <person>, <br>
    r"|(?:https?://|www\.)\S+"
    r"|\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|pdf|html?|php|mp4|avi)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:'[^\W\d_]+)?")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# what is said of every picture
META = _set(
    "image images photo photos photograph picture pictures thumbnail logo logos symbol symbols clipart portrait portraits painting "
    "paintings illustration illustrations icon icons profile stock pic pics"
)
# of the most frequent words of English those that are no noun, adjective or -ing verb: what stands in for a tagger
STOP = _set(
    "the and for with from into onto over under near about above after again against all also among another any anybody anyone are "
    "around because been before behind being below beneath beside besides between both but can cannot could did does doing down "
    "during each either else ever every everybody everyone few first had has have having her here hers herself him himself his how "
    "however inside its itself just last least less like many may maybe might mine more most much must myself near never next "
    "nobody none nor not nothing now off often once one only other others our ours out outside own per perhaps quite rather really "
    "same shall she should since some somebody someone something sometimes soon still such than that their theirs them themselves "
    "then there these they this those though three through throughout thus today together too toward towards two until upon usually "
    "very was were what whatever when where whether which while who whom whose why will within without would yes yet you your yours "
    "yourself get gets got give gives given goes gone make makes made take takes took taken put puts see sees seen seem seems show "
    "shows shown use uses used say says said come comes came become becomes became let lets keep keeps kept buy best free"
)
_PLURALS = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse", "geese": "goose", "feet": "foot",
    "teeth": "tooth", "oxen": "ox", "lice": "louse", "dice": "die", "leaves": "leaf", "knives": "knife", "wives": "wife",
    "lives": "life", "wolves": "wolf", "loaves": "loaf", "shelves": "shelf", "halves": "half", "calves": "calf", "elves": "elf",
    "thieves": "thief", "scarves": "scarf", "hooves": "hoof", "cacti": "cactus", "fungi": "fungus", "movies": "movie",
    "cookies": "cookie", "zombies": "zombie", "selfies": "selfie", "buses": "bus", "axes": "axe", "moustaches": "moustache",
    "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero", "mosquitoes": "mosquito", "mangoes": "mango",
    "volcanoes": "volcano", "tornadoes": "tornado", "lenses": "lens", "gases": "gas", "canvases": "canvas", "irises": "iris",
}  # fmt: skip
_SAME = _set(
    "series species glasses scissors trousers pants jeans shorts news sunglasses binoculars headphones goggles christmas canvas "
    "atlas gas lens mathematics physics gymnastics athletics"
)


def words_of(caption: str) -> list[str]:
    """A caption's words that may name something, in order: lower case, singular, no number, three letters or more."""
    text = _DROPPED.sub(" ", caption).replace("_", " ").replace("-", " ").lower()
    words = [re.sub(r"'s?$", "", word) for word in _WORD.findall(text)]
    usable = (singular(word) for word in words if len(word) >= 3 and word.isalpha())
    return [word for word in usable if word not in META]


def candidates(captions: Iterable[str], tagger: Tagger | None = None) -> list[str]:
    """What the captions of one picture's neighbours may name, the most frequent first; [NOTHING] where they name nothing.

    Words that come twice or more are kept; if none does, the most frequent are. Of these a tagger keeps nouns, adjectives and -ing
    verbs, as published. Without one the words of STOP and adverbs in -ly stand in for it, and are gone before counting: "the" twice
    would else push out a noun that comes once.

    Args:
        captions: any order gives the same.
        tagger: says which words may stay, e.g. by a part-of-speech tagger of your own.
    """
    counts = Counter(word for caption in captions for word in words_of(caption))
    if tagger is None:
        counts = Counter({word: count for word, count in counts.items() if _plausible(word)})
    least = min(2, max(counts.values(), default=0))
    kept = [word for word, count in counts.items() if count >= least and (tagger is None or tagger(word))]
    return sorted(kept, key=lambda word: (-counts[word], word)) or [NOTHING]


def singular(word: str) -> str:
    """English, lower case: dogs -> dog, boxes -> box, ladies -> lady, people -> person."""
    if word in _PLURALS:
        return _PLURALS[word]
    if len(word) < 4 or word in _SAME or word.endswith(("ss", "us", "is")) or not word.endswith("s"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zzes")):
        return word[:-2]
    return word[:-1]


def _plausible(word: str) -> bool:
    adverb = word.endswith("ly") and len(word) > 5 and not word.endswith(("fly", "family"))
    return word not in STOP and not adverb
