"""Tied embeddings: whatever end is trained, the merged files compute what the live model does."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Lfm2Config,
    Lfm2ForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from bone_peft import BoneError
from bone_peft.files.bases import load_base
from bone_peft.files.merging import merge
from bone_peft.io.ours import MANIFEST
from bone_peft.method.compat.tied_names import KEEPS_APART

from ..models import SMALL, config_for, llama, randomize, tokens
from ..versions import needs
from .small_gguf import ATTENTION, HIDDEN, NORMS, write_small_gguf

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ENDS = ["embed_tokens", "lm_head"]
TRAINED = [
    {"modules_to_save": ENDS},
    {"modules_to_save": ["embed_tokens"]},
    {"modules_to_save": ["lm_head"]},
    {"target_modules": ["lm_head", "q_proj"]},
    {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
]


def tied(folder: Path, **kwargs) -> Path:
    llama(tie_word_embeddings=True).save_pretrained(folder, **kwargs)
    return folder


def tuned(base, folder: Path, auto=AutoModelForCausalLM, whole=torch.nn.init.normal_, **options) -> PeftModel:
    """The live model, and its adapter in ``folder``."""
    model = base if isinstance(base, torch.nn.Module) else auto.from_pretrained(base)
    live = randomize(get_peft_model(model, config_for("bone", **{"target_modules": ["q_proj"], **options}))).eval()
    for name, parameter in live.named_parameters():
        if "modules_to_save" in name and whole is not None:
            whole(parameter)
    live.save_pretrained(folder)
    return live


def shared_bin(base: Path, share: bool) -> None:
    """As ``torch.save(model.state_dict())`` leaves it, by both names; in the same bytes or in bytes of their own."""
    stored = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    embedding = stored["model.embed_tokens.weight"]
    stored["lm_head.weight"] = embedding if share else embedding.clone()
    torch.save(stored, base / "pytorch_model.bin")


def alone_bin(base: Path) -> None:
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


def sharded_bin(base: Path) -> None:
    stored = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = {f"pytorch_model-0000{i + 1}-of-00002.bin": list(stored)[i::2] for i in range(2)}
    for file, part in names.items():
        torch.save({name: stored[name] for name in part}, base / file)
    weight_map = {name: file for file, part in names.items() for name in part}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def stored_as(base: Path, name: str) -> None:
    """With the one stored tensor of the tie under another of its names, or under both."""
    stored = load_file(base / "model.safetensors")
    embedding = stored.pop("model.embed_tokens.weight")
    names = ["lm_head.weight", "model.embed_tokens.weight"] if name == "both" else [name]
    for each in names:
        stored[each] = embedding.clone()
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})


LAYOUTS = {
    "one file": lambda base: None,
    "under the head's name": lambda base: stored_as(base, "lm_head.weight"),
    "under both names": lambda base: stored_as(base, "both"),
    "one .bin": alone_bin,
    "several .bin": sharded_bin,
    "one .bin with both": lambda base: shared_bin(base, share=False),
    "one .bin that shares": lambda base: shared_bin(base, share=True),
}


def lay_out(base: Path, layout: str) -> None:
    if layout == "under the head's name" and not KEEPS_APART:
        pytest.skip("Transformers before 5.0 does not load such a base")
    LAYOUTS[layout](base)


@pytest.mark.parametrize("options", TRAINED)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one .bin that shares"])
def test_the_merged_folder_is_the_live_model(tmp_path, layout, options):
    base = tied(tmp_path / "base")
    lay_out(base, layout)
    live = tuned(base, tmp_path / "adapter", **options)
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    x = tokens()
    torch.testing.assert_close(got(x).logits, live(x).logits, **CLOSE)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    head, embedding = got.lm_head.weight, got.model.embed_tokens.weight
    assert head is not embedding and not torch.equal(head, embedding)


def test_shards(tmp_path):
    base = tied(tmp_path / "base", max_shard_size="10KB")
    live = tuned(base, tmp_path / "adapter", modules_to_save=ENDS)
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    x = tokens()
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")(x).logits, live(x).logits, **CLOSE
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    stored = [load_file(file) for file in (tmp_path / "out").glob("*.safetensors")]
    assert {name for part in stored for name in part} == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for part in stored for tensor in part.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("changed", [True, False])
def test_ends_that_stay_equal_stay_tied(tmp_path, layout, changed):
    base = tied(tmp_path / "base")
    lay_out(base, layout)
    same = torch.randn(64, 32)
    live = tuned(
        base,
        tmp_path / "adapter",
        whole=(lambda parameter: parameter.data.copy_(same)) if changed else None,
        modules_to_save=ENDS,
    )
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    x = tokens()
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(got(x).logits, live(x).logits, **CLOSE)
    assert got.lm_head.weight is got.model.embed_tokens.weight
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    written = {path.name for path in (tmp_path / "out").iterdir()} - {MANIFEST}
    assert written == {path.name for path in base.iterdir()}


@pytest.mark.parametrize("options", TRAINED)
def test_a_tensor_that_two_names_share_cannot_become_two(tmp_path, options):
    base = tied(tmp_path / "base")
    shared_bin(base, share=True)
    tuned(base, tmp_path / "adapter", **options)
    with pytest.raises(BoneError, match="same bytes"):
        merge(str(base), tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_share_bytes_without_a_tie(tmp_path):
    base = tmp_path / "base"
    llama(tie_word_embeddings=False).save_pretrained(base)
    shared_bin(base, share=True)
    tuned(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    with pytest.raises(BoneError, match="same bytes"):
        merge(str(base), tmp_path / "adapter", tmp_path / "out")


def lfm2():
    layers = ["conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=layers, tie_word_embeddings=True))


def test_a_tie_that_the_config_calls_otherwise(tmp_path):
    lfm2().save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"tie_embedding": True}))
    live = tuned(tmp_path / "base", tmp_path / "adapter", modules_to_save=ENDS)
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    x = tokens()
    torch.testing.assert_close(got(x).logits, live(x).logits, **CLOSE)
    assert not got.config.tie_word_embeddings


def test_a_text_model_in_a_larger_one(tmp_path):
    text = {**SMALL, "head_dim": 8}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    live = tuned(
        tmp_path / "base", tmp_path / "adapter", AutoModelForImageTextToText, modules_to_save=ENDS, task_type=None
    )
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    got = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    x = tokens(vocab=50)
    torch.testing.assert_close(got(input_ids=x).logits, live(input_ids=x).logits, **CLOSE)
    assert not got.config.tie_word_embeddings and not got.config.text_config.tie_word_embeddings


@needs("transformers", "5.0")  # Before, see test_an_encoder_that_cannot_part.
@pytest.mark.parametrize(
    "config,build",
    [(T5Config, T5ForConditionalGeneration), (SwitchTransformersConfig, SwitchTransformersForConditionalGeneration)],
)
@pytest.mark.parametrize("modules", [["shared"], ["lm_head"], ["embed_tokens"], ["shared", "lm_head"]])
def test_encoders_and_decoders(tmp_path, config, build, modules):
    """Three and more ends, and a config whose flag of the tie also scales what the decoder gives."""
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    build(config(vocab_size=64, num_decoder_layers=2, tie_word_embeddings=True, **sizes)).save_pretrained(
        tmp_path / "base"
    )
    live = tuned(
        tmp_path / "base",
        tmp_path / "adapter",
        AutoModelForSeq2SeqLM,
        target_modules=["q"],
        modules_to_save=modules,
        task_type="SEQ_2_SEQ_LM",
    )
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    got = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    x = {"input_ids": tokens(), "decoder_input_ids": tokens()}
    torch.testing.assert_close(got(**x).logits, live(**x).logits, **CLOSE)


@pytest.mark.skipif(KEEPS_APART, reason="Transformers from 5.0 on can load it")
def test_an_encoder_that_cannot_part(tmp_path):
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=64, **sizes)).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["q"], "task_type": "SEQ_2_SEQ_LM"}
    tuned(tmp_path / "base", tmp_path / "adapter", AutoModelForSeq2SeqLM, modules_to_save=["lm_head"], **options)
    with pytest.raises(BoneError, match="install Transformers 5 or newer"):
        merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tuned(tmp_path / "base", tmp_path / "plain", AutoModelForSeq2SeqLM, **options)
    merge(str(tmp_path / "base"), tmp_path / "plain", tmp_path / "out")


def write_gguf(path: Path) -> None:
    """A llama without an output weight: it is tied."""

    def settings(writer):
        writer.add_feed_forward_length(64)
        writer.add_rope_dimension_count(8)

    mlp = {"ffn_gate": (64, HIDDEN), "ffn_up": (64, HIDDEN), "ffn_down": (HIDDEN, 64)}
    write_small_gguf(path, "llama", {**ATTENTION, **mlp, **NORMS}, settings=settings)


@pytest.mark.parametrize("options", [*TRAINED, {}])
def test_gguf(tmp_path, options):
    write_gguf(tmp_path / "base.gguf")
    base = str(tmp_path / "base.gguf")
    live = tuned(load_base(base, dtype="float32")[0], tmp_path / "adapter", **options)
    merge(base, tmp_path / "adapter", tmp_path / "out", dtype="float32")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    x = tokens()
    torch.testing.assert_close(got(x).logits, live(x).logits, **CLOSE)
    assert (got.lm_head.weight is got.model.embed_tokens.weight) is not bool(options)
    assert got.config.tie_word_embeddings is not bool(options)
