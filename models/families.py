"""The families of dual encoders that edgeclip reads: what `edgeclip sources` prints. Facts only; imports nothing heavy.

How a model really pools, scores and prepares its inputs is read from its own config when it is loaded. What stands here says what
to expect; tests hold it against models that the original libraries wrote. Licences are as the model cards stated them when this
table was written; the card that is downloaded with the weights wins, and is what a bundle carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NONE_STATED = "none stated"
MIT, APACHE = "mit", "apache-2.0"
# What a reader must know of a licence before weights under it are shipped.
WARNINGS = {
    NONE_STATED: "ask before you ship",
    **dict.fromkeys(("cc-by-nc-4.0", "apple-amlr", "creativeml-openrail-m"), "not for every use"),
}


@dataclass(frozen=True)
class Known:
    """Published weights in a format that edgeclip reads."""

    spec: str  # what `edgeclip export` takes
    licence: str

    @property
    def stated(self) -> str:
        """The licence, with its warning."""
        warning = WARNINGS.get(self.licence)
        return f"{self.licence} ({warning})" if warning else self.licence


@dataclass(frozen=True)
class Family:
    """One row of `edgeclip sources`."""

    name: str
    formats: tuple[str, ...]  # how its checkpoints lie on disk
    image: str
    text: str
    pooling: tuple[str, ...]  # image/text, as `edgeclip inspect` and Source.pooling name it
    scores: Literal["softmax", "sigmoid", "none"]
    activation: str  # of the feed-forwards
    pictures: str  # how they are usually prepared; the source's own config decides
    texts: str  # cleaning, tokenizer, length
    known: tuple[Known, ...] = ()


_BPE = "lower case (in OpenCLIP mended by ftfy first), byte-pair encoding of 49,408, up to 77 tokens"
_CROP = "shortest side, centre crop, bicubic, OpenAI's mean and std"

FAMILIES: tuple[Family, ...] = (
    Family(
        "CLIP", ("Hugging Face clip", "OpenCLIP"), "ViT", "causal transformer", ("cls/eos", "cls/argmax"), "softmax",
        "QuickGELU (OpenAI, DFN, MetaCLIP) or GELU (LAION, DataComp)", _CROP, _BPE,
        (
            Known("hf:openai/clip-vit-base-patch32", NONE_STATED),
            Known("hf:openai/clip-vit-base-patch16", NONE_STATED),
            Known("hf:openai/clip-vit-large-patch14", NONE_STATED),
            Known("hf:openai/clip-vit-large-patch14-336", NONE_STATED),
            Known("openclip:ViT-B-32/laion2b_s34b_b79k", MIT),
            Known("openclip:ViT-B-32-256/datacomp_s34b_b86k", MIT),
            Known("openclip:ViT-B-16/datacomp_xl_s13b_b90k", MIT),
            Known("openclip:ViT-L-14/datacomp_xl_s13b_b90k", MIT),
            Known("openclip:ViT-H-14/laion2b_s32b_b79k", MIT),
            Known("openclip:ViT-bigG-14/laion2b_s39b_b160k", MIT),
            Known("openclip:ViT-B-16-quickgelu/dfn2b", "apple-amlr"),
            Known("openclip:ViT-H-14-quickgelu/dfn5b", "apple-amlr"),
            Known("openclip:ViT-B-32-quickgelu/metaclip_400m", "cc-by-nc-4.0"),
            Known("hf:facebook/metaclip-b32-400m", "cc-by-nc-4.0"),
        ),
    ),
    Family(
        "CLIP-MoE", ("CLIP-MoE",), "ViT with experts in its blocks", "causal transformer with experts in its blocks", ("cls/argmax",), "softmax",
        "QuickGELU", _CROP, _BPE.replace("77", "248").replace("in OpenCLIP ", ""),
        (
            Known("hf:MajorDavidZhang/CLIP-MoE/clip-moe-4-2-sharegpt4v.pt", NONE_STATED),
            Known("hf:MajorDavidZhang/CLIP-MoE/clip-moe-4-2-recap-dc.pt", NONE_STATED),
        ),
    ),
    Family(
        "TinyCLIP", ("Hugging Face clip",), "ViT", "causal transformer", ("cls/eos", "cls/argmax"), "softmax",
        "GELU or QuickGELU, as the config says", _CROP, _BPE,
        (
            Known("hf:wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", MIT),
            Known("hf:wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M", MIT),
            Known("hf:wkcn/TinyCLIP-ViT-61M-32-Text-29M-LAION400M", MIT),
        ),
    ),
    Family(
        "MetaCLIP 2", ("Hugging Face metaclip_2", "OpenCLIP"), "ViT", "causal transformer", ("cls/eos",), "softmax",
        "QuickGELU or GELU, as the config says", _CROP, "XLM-V SentencePiece of 901,629, up to 77 tokens",
        (
            Known("hf:facebook/metaclip-2-worldwide-huge-quickgelu", "cc-by-nc-4.0"),
            Known("openclip:ViT-H-14-worldwide-quickgelu/metaclip2_worldwide", "cc-by-nc-4.0"),
        ),
    ),
    Family(
        "SigLIP", ("Hugging Face siglip", "OpenCLIP"), "ViT", "bidirectional transformer", ("map/last",), "sigmoid",
        "tanh GELU; in OpenCLIP as each tower's config has it", "squash, bicubic, mean and std 0.5", "no punctuation, lower case, SentencePiece of 32,000, always 64 tokens",
        (
            Known("hf:google/siglip-base-patch16-224", APACHE),
            Known("hf:google/siglip-base-patch16-256-multilingual", APACHE),
            Known("hf:google/siglip-so400m-patch14-384", APACHE),
            Known("openclip:ViT-B-16-SigLIP/webli", APACHE),
            Known("openclip:ViT-SO400M-14-SigLIP-384/webli", APACHE),
        ),
    ),
    Family(
        "SigLIP 2", ("Hugging Face siglip", "OpenCLIP"), "ViT", "bidirectional transformer", ("map/last",), "sigmoid",
        "tanh GELU; in OpenCLIP as each tower's config has it", "squash, bilinear, mean and std 0.5", "lower case, Gemma's byte-pair encoding of 256,000, always 64 tokens",
        (
            Known("hf:google/siglip2-base-patch16-224", APACHE),
            Known("hf:google/siglip2-so400m-patch14-384", APACHE),
            Known("openclip:ViT-B-16-SigLIP2/webli", APACHE),
        ),
    ),
    Family(
        "MobileCLIP and MobileCLIP 2", ("OpenCLIP",), "FastViT (S0 to S4), ViT (B, L/14)", "transformer, causal in B",
        ("avg/argmax", "cls/argmax"), "softmax", "GELU", "shortest side, centre crop, bilinear, mean 0, std 1 (some of 2: OpenAI's)", _BPE,
        (
            Known("openclip:MobileCLIP-S1/datacompdr", "apple-amlr"),
            Known("openclip:MobileCLIP-S2/datacompdr", "apple-amlr"),
            Known("openclip:MobileCLIP2-S0/dfndr2b", "apple-amlr"),
            Known("openclip:MobileCLIP2-S4/dfndr2b", "apple-amlr"),
        ),
    ),
    Family(
        "CLIP ResNet", ("OpenCLIP",), "ResNet with attention pool", "causal transformer", ("attention/argmax",), "softmax",
        "ReLU; QuickGELU in OpenAI's text towers", _CROP, _BPE,
        (
            Known("openclip:RN50-quickgelu/openai", NONE_STATED),
            Known("openclip:RN101-quickgelu/openai", NONE_STATED),
            Known("openclip:RN50x4-quickgelu/openai", NONE_STATED),
        ),
    ),
    Family(
        "OpenCLIP with timm towers", ("OpenCLIP",), "ConvNeXt, ViTamin, EVA-02, PE and other timm models", "causal transformer",
        ("avg/argmax", "cls/argmax", "map/argmax"), "softmax", "the tower's own", _CROP, _BPE,
        (
            Known("openclip:convnext_base_w/laion2b_s13b_b82k_augreg", MIT),
            Known("openclip:convnext_large_d_320/laion2b_s29b_b131k_ft_soup", MIT),
            Known("openclip:ViTamin-B/datacomp1b", MIT),
            Known("openclip:EVA02-B-16/merged2b_s8b_b131k", MIT),
            Known("openclip:PE-Core-B-16/meta", APACHE),
        ),
    ),
    Family(
        "CLIPA", ("OpenCLIP",), "ViT", "bidirectional transformer", ("avg/last",), "softmax", "GELU",
        "squash, bilinear, ImageNet's or OpenAI's mean and std", "BERT's WordPiece of 30,522 without [SEP], always 32 tokens",
        (Known("openclip:ViT-L-14-CLIPA/datacomp1b", APACHE), Known("openclip:ViT-H-14-CLIPA/datacomp1b", APACHE)),
    ),
    Family(
        "CoCa", ("OpenCLIP",), "ViT with attention pooler", "causal transformer with a class token", ("attentional/class",), "softmax",
        "GELU", _CROP, _BPE.replace("77", "76"),
        (Known("openclip:coca_ViT-B-32/laion2b_s13b_b90k", MIT), Known("openclip:coca_ViT-L-14/laion2b_s13b_b90k", MIT)),
    ),
    Family(
        "Multilingual OpenCLIP", ("OpenCLIP",), "ViT", "XLM-RoBERTa, RoBERTa or mT5 encoder", ("cls/mean", "cls/pooler", "cls/first"), "softmax", "GELU",
        _CROP, "the encoder's own tokenizer, up to 77 tokens",
        (
            Known("openclip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", MIT),
            Known("openclip:xlm-roberta-large-ViT-H-14/frozen_laion5b_s13b_b90k", MIT),
            Known("openclip:roberta-ViT-B-32/laion2b_s12b_b32k", MIT),
        ),
    ),
    Family(
        "Chinese-CLIP", ("Hugging Face chinese_clip",), "ViT", "BERT", ("cls/first",), "softmax", "QuickGELU in pictures, GELU in texts",
        "squash, bicubic, OpenAI's mean and std", "BERT's Chinese WordPiece of 21,128, up to 52 tokens",
        (
            Known("hf:OFA-Sys/chinese-clip-vit-base-patch16", NONE_STATED),
            Known("hf:OFA-Sys/chinese-clip-vit-large-patch14", NONE_STATED),
        ),
    ),
    Family(
        "AltCLIP", ("Hugging Face altclip",), "ViT", "XLM-RoBERTa", ("cls/first",), "softmax", "QuickGELU in pictures, GELU in texts",
        _CROP, "XLM-RoBERTa's SentencePiece of 250,002, up to 77 tokens",
        (Known("hf:BAAI/AltCLIP", "creativeml-openrail-m"), Known("hf:BAAI/AltCLIP-m9", "creativeml-openrail-m")),
    ),
    Family(
        "Vision-text dual encoder", ("Hugging Face vision-text-dual-encoder",), "ViT", "BERT, RoBERTa or XLM-RoBERTa", ("cls/pooler",),
        "softmax", "as the towers' configs say", "as preprocessor_config.json says", "the text model's own tokenizer",
        (Known("hf:clip-italian/clip-italian", "gpl-3.0"),),
    ),
    Family(
        "OWL-ViT", ("Hugging Face owlvit",), "ViT that finds objects: a box, an embedding, a scale and a bias for each patch", "causal transformer",
        ("patches/argmax",), "sigmoid", "QuickGELU; GELU in the heads", "squash, bicubic, OpenAI's mean and std; 768, large 840",
        _BPE.replace("77", "16"),
        (
            Known("hf:google/owlvit-base-patch32", APACHE),
            Known("hf:google/owlvit-base-patch16", APACHE),
            Known("hf:google/owlvit-large-patch14", APACHE),
        ),
    ),
    Family(
        "OWLv2", ("Hugging Face owlv2",), "OWL-ViT's, and an objectness for each patch", "causal transformer",
        ("patches/argmax",), "sigmoid", "QuickGELU; GELU in the heads",
        "padded to a square, then scaled bilinearly behind a blur, OpenAI's mean and std; 960, large 1,008", _BPE.replace("77", "16"),
        (
            Known("hf:google/owlv2-base-patch16", APACHE),
            Known("hf:google/owlv2-base-patch16-ensemble", APACHE),
            Known("hf:google/owlv2-base-patch16-finetuned", APACHE),
            Known("hf:google/owlv2-large-patch14", APACHE),
            Known("hf:google/owlv2-large-patch14-ensemble", APACHE),
            Known("hf:google/owlv2-large-patch14-finetuned", APACHE),
        ),
    ),
    Family(
        "Single towers",
        ("Hugging Face clip_text_model", "Hugging Face clip_vision_model", "Hugging Face siglip_text_model", "Hugging Face siglip_vision_model"),
        "ViT or none", "transformer or none", ("cls/", "map/", "/eos", "/argmax", "/last"), "none", "as the config says",
        "as preprocessor_config.json says", "as the whole model's",
    ),
)  # fmt: skip
