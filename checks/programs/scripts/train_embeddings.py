"""A script of someone who knows nothing of bone-peft: ``python train_embeddings.py BASE OUT``; prints JSON."""

import json
import sys

import torch
from datasets import Dataset
from peft import BoneConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.models import Pooling, Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

base, out = sys.argv[1:]
texts = [f"What is {a} + {b}?" for a in range(2, 10) for b in range(2, 10)]
sums = [f"{a} + {b} = {a + b}" for a in range(2, 10) for b in range(2, 10)]
torch.manual_seed(0)
body = Transformer(base)
model = SentenceTransformer(modules=[body, Pooling(body.get_word_embedding_dimension())], device="cpu")
before = model.encode(texts, convert_to_tensor=True)
model.add_adapter(BoneConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="FEATURE_EXTRACTION"))
start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
trainer = SentenceTransformerTrainer(
    model,
    SentenceTransformerTrainingArguments(
        output_dir=f"{out}-runs",
        max_steps=8,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    ),
    Dataset.from_dict({"anchor": texts, "positive": sums}),
    loss=MultipleNegativesRankingLoss(model),
)
trainer.train()
trained = model.encode(texts, convert_to_tensor=True)
model.save_pretrained(out)
again = SentenceTransformer(out, device="cpu").encode(texts, convert_to_tensor=True)
found = {
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "trained": sorted(start),
    "moved": sum(not p.equal(start[name]) for name, p in model.named_parameters() if name in start),
    "changed": (trained - before).abs().max().item(),
    "apart": (again - trained).abs().max().item(),
}
print(json.dumps(found))
