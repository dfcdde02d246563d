"""A script of someone who knows nothing of bone-peft: ``python train_unsloth.py BASE ADAPTER OUT``; prints JSON."""

import json
import sys

from unsloth import FastLanguageModel  # isort: skip  # It wants to be the first.

import torch
from datasets import Dataset
from peft import BoneConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

base, adapter, out = sys.argv[1:]
options = {"max_seq_length": 64, "load_in_4bit": False, "dtype": torch.float32}
model, tokenizer = FastLanguageModel.from_pretrained(base, **options)
model = get_peft_model(model, BoneConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
args = SFTConfig(
    output_dir=out,
    max_steps=6,
    per_device_train_batch_size=4,
    learning_rate=1e-2,
    logging_steps=1,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
    bf16=False,
)
rows = [{"text": f"What is {a} + {b}? {a} + {b} = {a + b}"} for a in range(2, 10) for b in range(2, 10)]
trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
trainer.train()
moved = sum(not p.equal(start[name]) for name, p in model.named_parameters() if name in start)
model.save_pretrained(out)

loaded, _ = FastLanguageModel.from_pretrained(adapter, **options)
tokens = tokenizer("What is 3 + 4?", return_tensors="pt")
want = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
with torch.no_grad():
    got, want = loaded(**tokens).logits, want(**tokens).logits
found = {
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "trained": len(start),
    "moved": moved,
    "apart": (got - want).abs().max().item(),
    "largest": want.abs().max().item(),
}
print(json.dumps(found))
