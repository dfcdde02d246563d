"""The model against the library's own, which walks token by token."""

import pytest
import torch
from rwkv7_hf import RWKV7ForCausalLM

from bone_peft.files.bases import load_base
from bone_peft.rwkv.causal_lm import RwkvForCausalLM

from .conftest import assert_checkpointing_changes_nothing, small_model


@pytest.fixture(scope="module")
def model() -> RwkvForCausalLM:
    return small_model()


@pytest.fixture(scope="module")
def library(model) -> RWKV7ForCausalLM:
    theirs = RWKV7ForCausalLM(model.config).eval()
    theirs.load_state_dict({name.replace(".mix.", "."): tensor for name, tensor in model.state_dict().items()})
    return theirs


def padded(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[0, :9] = mask[1, 30:] = 0
    return mask


def test_logits_and_gradients_are_the_library_s(model, library, ids):
    mask = padded(ids)
    ours, theirs = model(ids, attention_mask=mask).logits, library(ids, attention_mask=mask).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(ours) * mask[..., None]
    wanted = torch.autograd.grad(theirs, [*library.parameters()], direction)
    names = {name.replace(".mix.", "."): parameter for name, parameter in model.named_parameters()}
    got = torch.autograd.grad(ours, [names[name] for name, _ in library.named_parameters()], direction)
    for a, b in zip(wanted, got, strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-4


def test_generation_takes_padding_and_its_cache(model, library, ids):
    prompt, mask = ids[:, :12], padded(ids)[:, :12]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, "eos_token_id": None}
    expected = library.generate(prompt, **options)
    assert torch.equal(model.generate(prompt, **options), expected)
    alone = model.generate(prompt[:1, 9:], max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(alone[0, 3:], expected[0, 12:])


def test_packed_documents_keep_to_themselves(model, ids):
    first, second = ids[:1, :11], ids[1:2]
    packed = torch.cat((first, second), 1)
    positions = torch.cat((torch.arange(first.shape[1]), torch.arange(second.shape[1]))).unsqueeze(0)
    expected = torch.cat((model(first).logits, model(second).logits), 1)
    torch.testing.assert_close(model(packed, position_ids=positions).logits, expected)
    assert not torch.allclose(model(packed).logits, expected)


def test_loss_counts_as_the_trainer_asks(model, ids):
    labels = ids.clone()
    labels[:, :20] = -100
    logits = model(ids).logits[:, 19:-1].double()
    summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 20:].flatten(), reduction="sum")
    torch.testing.assert_close(model(ids, labels=labels).loss.double(), summed / 51, rtol=1e-5, atol=0)
    found = model(ids, labels=labels, num_items_in_batch=100).loss.double()
    torch.testing.assert_close(found, summed / 100, rtol=1e-5, atol=0)


def test_gradient_checkpointing_changes_nothing(model, ids):
    assert_checkpointing_changes_nothing(model, ids)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantized_bases_keep_what_is_no_layer(base, ids, quantize):
    pytest.importorskip("bitsandbytes")
    exact, _ = load_base(str(base), dtype="float32")
    model, _ = load_base(str(base), quantize=quantize)
    names = {name for name, module in model.named_modules() if type(module).__module__.startswith("bitsandbytes")}
    assert len(names) == 2 * 6 and all("lora" not in name for name in names)
    logits, expected = model(ids).logits.float(), exact(ids).logits
    error = float((logits - expected).norm() / expected.norm())
    assert 1e-4 < error < 0.2


def test_rows_of_one_length_in_a_line_are_a_batch(model, ids):
    rows, length = ids.shape
    starts = torch.arange(rows + 1, dtype=torch.int32) * length
    told = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": length}  # the positions are not asked
    expected = model(ids).logits
    torch.testing.assert_close(model(ids.view(1, -1), **told).logits[0], expected.flatten(0, 1))
    # Of other lengths, by the positions alone.
    first, second = ids[:1, :11], ids[1:2]
    positions = torch.cat((torch.arange(11), torch.arange(length)))[None]
    told = {"position_ids": positions, "cu_seq_lens_q": torch.tensor([0, 11, 11 + length]), "max_length_q": length}
    found = model(torch.cat((first, second), 1), **told).logits
    torch.testing.assert_close(found[:, 11:], expected[1:2])


@pytest.mark.parametrize("kept", [3, torch.tensor([0, 5, 6, 36])])
def test_the_head_is_computed_where_it_is_asked_for(model, ids, kept):
    places = kept if torch.is_tensor(kept) else torch.arange(ids.shape[1] - kept, ids.shape[1])
    sizes = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    found = model(ids, logits_to_keep=kept).logits
    handle.remove()
    assert sizes == [len(places)]
    torch.testing.assert_close(found, model(ids).logits[:, places])


def test_a_mask_that_hides_nothing_changes_nothing(model, ids):
    torch.testing.assert_close(model(ids, attention_mask=torch.ones_like(ids)).logits, model(ids).logits)
    nothing = torch.zeros(1, 1, dtype=torch.long).expand(ids.shape)
    assert not model(ids, attention_mask=nothing).logits.any()
