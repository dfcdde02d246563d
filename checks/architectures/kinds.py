"""The architectures of each kind, by their names in Transformers, and the class that is tried of each."""

from __future__ import annotations

from transformers.models.auto import modeling_auto as auto

VISION = [
    "vit",
    "deit",
    "beit",
    "data2vec-vision",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "vit_mae",
    "vit_msn",
    "ijepa",
    "swin",
    "swinv2",
    "convnext",
    "convnextv2",
    "clip",
    "clip_vision_model",
    "siglip",
    "siglip_vision_model",
    "siglip2",
    "hiera",
    "pvt",
    "segformer",
    "mobilevit",
    "dpt",
    "yolos",
    "cvt",
    "focalnet",
    "levit",
    "poolformer",
    "regnet",
    "resnet",
    "mlcd",
]
VISION_LANGUAGE = [
    "llava",
    "llava_next",
    "vipllava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "idefics",
    "idefics2",
    "idefics3",
    "smolvlm",
    "gemma3",
    "paligemma",
    "internvl",
    "mistral3",
    "aya_vision",
    "blip-2",
    "instructblip",
    "glm4v",
    "aria",
    "got_ocr2",
    "llama4",
]
SPEECH = [
    "whisper",
    "wav2vec2",
    "hubert",
    "wavlm",
    "unispeech",
    "unispeech-sat",
    "data2vec-audio",
    "wav2vec2-bert",
    "wav2vec2-conformer",
    "sew",
    "sew-d",
    "speech_to_text",
    "moonshine",
    "audio-spectrogram-transformer",
    "clap",
    "seamless_m4t",
    "speecht5",
]
OTHER = {
    "wavlm-xvector": ("wavlm", "WavLMForXVector"),
    "wav2vec2-xvector": ("wav2vec2", "Wav2Vec2ForXVector"),
    "wav2vec2-ctc": ("wav2vec2", "Wav2Vec2ForCTC"),
    "vit-classifier": ("vit", "ViTForImageClassification"),
    "siglip-classifier": ("siglip", "SiglipForImageClassification"),
    "detr": ("detr", "DetrForObjectDetection"),
    "conditional_detr": ("conditional_detr", "ConditionalDetrForObjectDetection"),
}


def _all(*mappings: dict, names: list[str] | None = None) -> dict[str, tuple[str, str]]:
    """Type and class by name; of several classes the first, of several mappings the first that has the name."""
    known = {name: classes for mapping in reversed(mappings) for name, classes in mapping.items()}
    chosen = {name: known[name] for name in names or known}
    return {name: (name, c if isinstance(c, str) else c[0]) for name, c in chosen.items()}


# Which are all that Transformers has of a kind, and which are chosen by hand.
KINDS: dict[str, dict[str, tuple[str, str]]] = {
    "causal-lm": _all(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq": _all(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "masked-lm": _all(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "sequence-classification": _all(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "vision": _all(auto.MODEL_MAPPING_NAMES, names=VISION),
    "vision-language": _all(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, names=VISION_LANGUAGE),
    "speech": _all(auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES, names=SPEECH),
    "other": OTHER,
}
CHOSEN = ("vision", "vision-language", "speech", "other")
