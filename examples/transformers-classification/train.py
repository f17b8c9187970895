"""Train a tiny BERT that tells which package of Python's standard library a sentence of documentation is from.

Writes the model and its tokenizer to model/, and a request with sentences it has never seen, with the answers of
transformers itself, to request.json and expected.json.
"""

import importlib
import inspect
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

HERE = Path(__file__).parent
PACKAGES = ("asyncio", "decimal", "socket", "threading")
MODULES = {"asyncio": ("asyncio.streams", "asyncio.locks", "asyncio.base_events", "asyncio.tasks", "asyncio.events")}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing by more
    examples = shuffled([(text, number) for number, name in enumerate(PACKAGES) for text in sentences(name)])
    held_out, train = examples[:32], examples[32:]
    tokenizer = train_tokenizer([text for text, _ in train])
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, num_labels=len(PACKAGES),
        id2label=dict(enumerate(PACKAGES)), label2id={name: number for number, name in enumerate(PACKAGES)},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(8):
        for start in range(0, len(train), 32):
            texts, labels = zip(*train[start : start + 32], strict=True)
            batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            loss = model(**batch, labels=torch.tensor(labels)).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    model.save_pretrained(HERE / "model")
    tokenizer.save_pretrained(HERE / "model")

    texts = [text for text, _ in held_out]
    found = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(texts, truncation=True)
    scores = [[{one["label"]: one["score"] for one in each}[name] for name in PACKAGES] for each in found]
    best = [max(each, key=lambda one: one["score"]) for each in found]
    count = len(texts)
    outputs = [
        {"name": "label", "shape": [count], "data": [one["label"] for one in best]},
        {"name": "score", "shape": [count], "data": [one["score"] for one in best]},
        {"name": "scores", "shape": [count, len(PACKAGES)], "data": [value for each in scores for value in each]},
    ]
    asked = {"name": "text", "datatype": "BYTES", "shape": [count], "data": texts}
    (HERE / "request.json").write_text(json.dumps({"inputs": [asked]}))
    (HERE / "expected.json").write_text(json.dumps({"outputs": outputs}))
    right = sum(one["label"] == PACKAGES[number] for one, (_, number) in zip(best, held_out, strict=True))
    print(f"model/: {right} of {count} held-out sentences right")


def sentences(package: str) -> list[str]:
    """Paragraphs of the documentation of all that a package defines."""
    found = set()
    for name in MODULES.get(package, (package,)):
        defined = list(vars(importlib.import_module(name)).values())
        for thing in [*defined, *(part for kind in defined if inspect.isclass(kind) for part in vars(kind).values())]:
            text = inspect.getdoc(thing) if callable(thing) else None
            found |= {" ".join(part.split()) for part in (text or "").split("\n\n") if len(part) > 30}
    return shuffled(sorted(text for text in found if ">>>" not in text))[:100]


def shuffled(values: list) -> list:
    return [values[number] for number in torch.randperm(len(values)).tolist()]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


if __name__ == "__main__":
    main()
