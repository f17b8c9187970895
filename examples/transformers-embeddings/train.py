"""Train a tiny BERT to embed sentences: those about one package of Python's standard library lie near each other.

Writes the model and its tokenizer to model/, and a request with sentences it has never seen, with the embeddings that
transformers itself gives (the mean of the tokens' vectors), to request.json and expected.json.
"""

import importlib
import inspect
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

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
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    head = nn.Linear(config.hidden_size, len(PACKAGES))
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(8):
        for start in range(0, len(train), 32):
            texts, labels = zip(*train[start : start + 32], strict=True)
            loss = nn.functional.cross_entropy(head(embed(model, tokenizer, texts)), torch.tensor(labels))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    model.save_pretrained(HERE / "model")
    tokenizer.save_pretrained(HERE / "model")

    texts = [text for text, _ in held_out]
    with torch.inference_mode():
        vectors = embed(model, tokenizer, texts)
    asked = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    answer = {"name": "embedding", "shape": list(vectors.shape), "data": vectors.flatten().tolist()}
    (HERE / "request.json").write_text(json.dumps({"inputs": [asked]}))
    (HERE / "expected.json").write_text(json.dumps({"outputs": [answer]}))
    likeness = nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2).fill_diagonal_(-1)
    labels = torch.tensor([number for _, number in held_out])
    right = (labels[likeness.argmax(dim=1)] == labels).sum().item()
    print(f"model/: of {len(texts)} held-out sentences, {right} are nearest to one about the same package")


def embed(model: BertModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """The mean of the tokens' vectors, without padding."""
    batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    weights = batch["attention_mask"].unsqueeze(2)
    return (model(**batch).last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)


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
