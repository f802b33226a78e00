"""A corpus of texts that break tokenizers: some 5,500 strings in 40 scripts, the same on every machine."""

from __future__ import annotations

import random
import unicodedata

# A phrase that people write, and the letters from which more words are made.
SCRIPTS: dict[str, tuple[str, tuple[tuple[int, int], ...]]] = {
    "latin": ("A photo of a small dog on the beach.", ((0x41, 0x5A), (0x61, 0x7A))),
    "latin accents": (
        "Le café près de l'hôtel où naît l'été, señor Müller",
        ((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x17F)),
    ),
    "vietnamese": ("Một con mèo đang ngủ trên ghế", ((0x1EA0, 0x1EF9),)),
    "greek": ("Μια γάτα κοιμάται στον ήλιο ς", ((0x391, 0x3A1), (0x3A3, 0x3CE))),
    "cyrillic": ("Кошка спит на крыше дома ёж", ((0x410, 0x44F), (0x450, 0x45F))),
    "armenian": ("Կատուն քնած է", ((0x531, 0x556), (0x561, 0x587))),
    "georgian": ("კატა სძინავს", ((0x10D0, 0x10F0), (0x1C90, 0x1CB0))),
    "hebrew": ("חתול ישן על הספה", ((0x5D0, 0x5EA),)),
    "arabic": ("قطة نائمة على الأريكة ١٢٣", ((0x621, 0x63A), (0x641, 0x64A))),
    "persian": (
        "گربه‌ای روی مبل خوابیده است",
        ((0x67E, 0x67E), (0x686, 0x686), (0x6A9, 0x6AF), (0x6CC, 0x6CC)),
    ),
    "syriac": ("ܫܠܡܐ ܥܠܡܐ", ((0x710, 0x72F),)),
    "thaana": ("ދިވެހި ބަސް", ((0x780, 0x7A5),)),
    "nko": ("ߒߞߏ", ((0x7CA, 0x7EA),)),
    "devanagari": ("एक बिल्ली सो रही है क्ष", ((0x905, 0x939), (0x93E, 0x94D))),
    "bengali": ("একটি বিড়াল ঘুমাচ্ছে", ((0x985, 0x98C), (0x995, 0x9A8), (0x9BE, 0x9C4))),
    "gurmukhi": ("ਇੱਕ ਬਿੱਲੀ ਸੌਂ ਰਹੀ ਹੈ", ((0xA15, 0xA28), (0xA3E, 0xA42))),
    "gujarati": ("એક બિલાડી સૂઈ રહી છે", ((0xA95, 0xAA8), (0xABE, 0xAC5))),
    "oriya": ("ଗୋଟିଏ ବିଲେଇ ଶୋଇଛି", ((0xB15, 0xB28), (0xB3E, 0xB43))),
    "tamil": ("ஒரு பூனை தூங்குகிறது", ((0xB92, 0xB95), (0xBAE, 0xBB9), (0xBBE, 0xBC2))),
    "telugu": ("ఒక పిల్లి నిద్రపోతోంది", ((0xC15, 0xC28), (0xC3E, 0xC44))),
    "kannada": ("ಒಂದು ಬೆಕ್ಕು ಮಲಗಿದೆ", ((0xC95, 0xCA8), (0xCBE, 0xCC4))),
    "malayalam": ("ഒരു പൂച്ച ഉറങ്ങുന്നു", ((0xD15, 0xD28), (0xD3E, 0xD43))),
    "sinhala": ("පූසෙක් නිදාගෙන සිටී", ((0xD9A, 0xDB1), (0xDCF, 0xDD4))),
    "thai": ("แมวกำลังนอนอยู่บนโซฟา", ((0xE01, 0xE2E), (0xE30, 0xE3A))),
    "lao": ("ແມວນອນຫຼັບ", ((0xE81, 0xE82), (0xE94, 0xE97), (0xEB0, 0xEB9))),
    "tibetan": ("ཞི་མི་གཉིད་ཉལ", ((0xF40, 0xF47), (0xF49, 0xF6C), (0xF71, 0xF7D))),
    "myanmar": ("ကြောင်အိပ်နေသည်", ((0x1000, 0x1021), (0x102B, 0x1032))),
    "khmer": ("ឆ្មាកំពុងគេង", ((0x1780, 0x17A2), (0x17B6, 0x17C5))),
    "ethiopic": ("ድመት ተኝታለች", ((0x1200, 0x1246), (0x1260, 0x1286))),
    "cherokee": ("ᏪᏌ ᎦᎵᎭ", ((0x13A0, 0x13F4), (0xAB70, 0xABBF))),
    "canadian syllabics": ("ᐴᓯ ᓂᐹᐤ", ((0x1401, 0x1480),)),
    "ogham": ("᚛ᚉᚐᚈ᚜", ((0x1681, 0x169A),)),
    "runic": ("ᚲᚨᛏᛏᚱ", ((0x16A0, 0x16EA),)),
    "mongolian": ("ᠮᠤᠤᠷ ᠤᠨᠲᠠᠵᠤ", ((0x1820, 0x1842),)),
    "hiragana": ("ねこがねています", ((0x3041, 0x3096),)),
    "katakana": ("ネコガネテイマス ﾈｺ", ((0x30A1, 0x30FA), (0xFF66, 0xFF9D))),
    "han": ("一只猫在沙发上睡觉。貓在睡覺", ((0x4E00, 0x9FA5), (0x20000, 0x200FF))),
    "bopomofo": ("ㄇㄠ ㄕㄨㄟˋ", ((0x3105, 0x312D),)),
    "hangul": ("고양이가 소파에서 자고 있다 ㄱㄴㄷ", ((0xAC00, 0xD7A3), (0x1100, 0x1112))),
    "yi": ("ꃅꆀ", ((0xA000, 0xA0FF),)),
    "gothic": ("𐌺𐌰𐍄𐍄𐌿𐍃", ((0x10330, 0x1034A),)),
    "deseret": ("𐐗𐐰𐐻 𐐿𐐰𐐻", ((0x10400, 0x1044F),)),
}

BY_HAND = [
    "", " ", "\n", "\t \r\n", "a", "A", "!", "…", "it's we'll they've I'd I'm you're 'S 'LL 'ſ", "don't  can’t", "x" * 300, "ab " * 200,
    "the " * 76, "the " * 75, "the " * 74, "7" * 100, "3.14159 1,000,000 10% $5 €7 №9 ½ ² Ⅷ ①", "<|startoftext|>", "a <|endoftext|> b",
    "<start_of_text> x <end_of_text>", "<|STARTOFTEXT|>", "&amp; &lt;b&gt; &quot;x&quot; &#39; &#x1F600; &nbsp; &copy;", "&amp;amp; &amp;lt;", "<i> &amp;amp;lt; &amp;amp; x",
    "AT&T R&D &unknown; & &&", "fish &amp chips", "<p>hello</p> &amp; <br/>", "cafÃ© naÃ¯ve â€œquotesâ€\x9d donâ€™t", "Ã©tÃ©", "âœ” No problems",
    "l’avión “rápido” ‘x’ «y»", "ﬁne ﬂow oﬃce ﬀ ﬆ", "ＦＵＬＬ　ｗｉｄｔｈ　１２３！", "ﾊﾝｶｸ", "soft\u00adhyphen zero\u200bwidth\u200cjoin\u200der\ufeffbom",
    "null\0byte", "bell\a esc\x1b[31mred\x1b[0m", "del\x7f c1\x85\x9f", "line\u2028separator\u2029paragraph", "a\u00a0b\u2003c\u3000d\u1680e", "tab\tand\vvertical\fform",
    "e\u0301 é", "n\u0303 ñ", "Å \u212b A\u030a", "\u1e9b\u0323", "İstanbul ıI DİYARBAKIR", "STRASSE Straße ẞ", "ΌΔΟΣ ὀδός Σ ς", "Ǆ ǅ ǆ", "ŉ ﬓ", "क्‍ष क्‌ष",
    "👍 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪🇫🇷 ☎️ ☎︎ 1️⃣ ❤️‍🔥 👨🏿‍🦰 🧑🏻‍🤝‍🧑🏾", "🐱🐶🐭", "¯\\_(ツ)_/¯ ಠ_ಠ (╯°□°)╯︵ ┻━┻", "→ ⇒ ∀x∈ℝ: ⌈x⌉ ≠ ∞ ∑∫√", "𝕳𝖊𝖑𝖑𝖔 𝓦𝓸𝓻𝓵𝓭 ⓗⓔⓛⓛⓞ",
    "Z̸̡̛̖a̵͕͝l̷̘̈́g̶̰͌o̷͍͂", "\u202eright to left\u202c", "a_b__c -- d...e", "http://example.com/a?b=c&d=e#f", "me@example.com", "C:\\path\\file.txt", "#hash @at",
    "snake_case camelCase SCREAMING-KEBAB", "\ufffd replacement \ufffe", "\ue000 private", "한글 자모 \u1112\u1161\u11ab", "a photo of a {}.", "{label}", "日本語 mixed with English и русский",
]  # fmt: skip


def corpus(seed: int = 20, per_script: int = 100) -> list[str]:
    """At least 5,000 strings: phrases, words of random letters, mixtures, emoji, entities, mojibake, controls, long lines."""
    random_ = random.Random(seed)
    texts = [*BY_HAND, *(text.upper() for text in BY_HAND), *(f"  {text}\n{text} " for text in BY_HAND)]
    for phrase, ranges in SCRIPTS.values():
        letters = [
            chr(c)
            for low, high in ranges
            for c in range(low, high + 1)
            if unicodedata.category(chr(c)) != "Cn"
        ]
        texts += [phrase, phrase.upper(), phrase.encode().decode("latin-1"), f"a photo of {phrase}!"]
        for _ in range(per_script):
            words = [
                "".join(random_.choices(letters, k=random_.randint(1, 9)))
                for _ in range(random_.randint(1, 6))
            ]
            texts.append(random_.choice([" ", "  ", ", ", "-", "\n", "/"]).join(words))
    for _ in range(1200):  # pieces of everything, glued together
        pieces = random_.sample(texts, random_.randint(2, 4))
        texts.append(random_.choice(["", " ", "\u200d", "&amp;", "'s "]).join(piece[:40] for piece in pieces))
    return texts
