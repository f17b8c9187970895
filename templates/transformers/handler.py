"""Serves Hugging Face folders: text classification, embeddings, and greedy generation."""

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before transformers reads them: nothing is fetched, and a request's texts are not worth processes of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.devices import check_device
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.verify import read_manifest

INPUT = "text"
CONFIG = "config.json"
CLASSES = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "embeddings": transformers.AutoModel,
    "generation": transformers.AutoModelForCausalLM,
}
ARCHITECTURES = {  # how their names end
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "generation",
    "LMHeadModel": "generation",
    "ForMaskedLM": "embeddings",
    "Model": "embeddings",
}
# What a tokenizer without a limit of its own says.
NO_LIMIT = 1_000_000
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class Model:
    """A model, its tokenizer, and what it is asked for."""

    network: Any
    tokenizer: Any
    task: str
    pooling: str
    limit: int  # of tokens
    max_new_tokens: int
    # Padding and truncation are settings of the tokenizer, which all threads share.
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def labels(self) -> list[str]:
        named = self.network.config.id2label
        return [str(named[number]) for number in range(self.network.config.num_labels)]

    @property
    def is_regression(self) -> bool:
        return bool(self.network.config.problem_type == "regression")


def load(model_dir: Path, options: Mapping[str, Any]) -> Model:
    """Load the one model in `model_dir`, with its tokenizer."""
    device = torch.device(str(options.get("device", "cpu")))
    check_device(device.type, torch.cuda.is_available)
    if threads := int(options.get("threads", 1)):
        torch.set_num_threads(threads)
    folder = _find(model_dir)
    config = _read_config(folder / CONFIG)
    task = str(options.get("task", "auto"))
    if task == "auto":
        task = _task(config)
    for path in sorted(folder.glob("*.safetensors")):
        _check_weights(path)
    pooling, max_new_tokens = str(options.get("pooling", "mean")), int(options.get("max_new_tokens", 64))
    network = _network(folder, task).to(device).eval()
    tokenizer = _tokenizer(folder)
    positions = _positions(network)
    # Padding moves where a text begins or ends, and the answer must not depend on the texts that come with it: before a
    # text that is gone on with, behind all others, whatever the tokenizer says.
    tokenizer.padding_side = "left" if task == "generation" else "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(network.config, "pad_token_id", None) is None:  # by it a classifier finds where a text ends
        network.config.pad_token_id = tokenizer.pad_token_id
    if task == "generation" and positions <= max_new_tokens:
        raise ModelError(
            f"the model has {positions} positions, which leaves no prompt beside {max_new_tokens} new tokens",
            hint="server.options.max_new_tokens says how many",
        )
    return Model(network, tokenizer, task, pooling, min(tokenizer.model_max_length, positions), max_new_tokens)


def predict(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answer for each text."""
    try:
        texts = [text.decode() for text in inputs[INPUT]]
    except UnicodeDecodeError:
        raise InputError("a text is not UTF-8") from None
    with torch.inference_mode():
        if model.task == "generation":
            return {"generated": np.array(_generate(model, texts), np.object_)}
        batch = _tokens(model, texts, truncation=True, max_length=model.limit)
        answer = model.network(**batch)
        if model.task == "embeddings":
            return {"embedding": _pooled(model, answer.last_hidden_state.float(), batch["attention_mask"])}
        return _classified(model, answer.logits.float())


def signature(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Texts in; what comes out is known by the task and the config."""
    texts = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
    if model.task == "generation":
        return texts, [{"name": "generated", "datatype": "BYTES", "shape": [-1]}]
    if model.task == "embeddings":
        width = model.network.config.hidden_size
        return texts, [{"name": "embedding", "datatype": "FP32", "shape": [-1, width]}]
    labels = model.labels
    scores = {"name": "scores", "datatype": "FP32", "shape": [-1, len(labels)], "parameters": {"labels": labels}}
    if model.is_regression:
        return texts, [scores]
    best = [{"name": "label", "datatype": "BYTES", "shape": [-1]}, {"name": "score", "datatype": "FP32", "shape": [-1]}]
    return texts, [*best, scores]


def warm_up(model: Model) -> None:
    """Answer one short text."""
    predict(model, {INPUT: np.array([b"a"], np.object_)})


def _tokens(model: Model, texts: list[str], **settings: Any) -> Mapping[str, torch.Tensor]:
    with model.guard:
        batch = model.tokenizer(texts, padding=len(texts) > 1, return_tensors="pt", **settings)
    return {name: tensor.to(model.network.device) for name, tensor in batch.items()}


def _classified(model: Model, logits: torch.Tensor) -> dict[str, np.ndarray]:
    """As transformers' own pipeline: softmax over classes, sigmoid where several labels may hold."""
    if model.is_regression:
        return {"scores": logits.cpu().numpy()}
    config = model.network.config
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    scores = (logits.sigmoid() if several else logits.softmax(dim=1)).cpu().numpy()
    best = scores.argmax(axis=1)
    labels = np.array(model.labels, np.object_)[best]
    return {"label": labels, "score": scores.max(axis=1), "scores": scores}


def _pooled(model: Model, vectors: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    if model.pooling == "cls":
        pooled: np.ndarray = vectors[:, 0].cpu().numpy()
        return pooled
    weights = mask.unsqueeze(2).to(vectors.dtype)
    mean: np.ndarray = ((vectors * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).cpu().numpy()
    return mean


def _generate(model: Model, texts: list[str]) -> list[str]:
    """The most probable continuation of each text, without the text."""
    if not all(texts):
        raise InputError("a text is empty: there is nothing to go on from")
    batch = _tokens(model, texts)
    length = batch["input_ids"].shape[1]
    if length + model.max_new_tokens > model.limit:
        raise InputError(
            f"a text has {length} tokens: with {model.max_new_tokens} new ones the model takes {model.limit}"
        )
    settings = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=model.max_new_tokens,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=model.network.generation_config.eos_token_id,
        bos_token_id=model.network.generation_config.bos_token_id,
    )
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    tokens = model.network.generate(**batch, generation_config=settings)
    generated: list[str] = model.tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)
    return generated


# Finding and reading


def _find(model_dir: Path) -> Path:
    """The folder with a config and weights; where there is a manifest, only what it names counts."""
    found = read_manifest(model_dir)
    files = [model_dir / file.path for file in found[0].files] if found else sorted(model_dir.rglob("*"))
    weights = {path.parent for path in files if path.suffix == ".safetensors"}
    folders = sorted({path.parent for path in files if path.name == CONFIG} & weights)
    if not folders:
        raise ModelError(
            f"no folder with {CONFIG} and safetensors is here",
            hint="`save_pretrained` of a transformers model writes one",
        )
    # Folders within are parts of the outermost one's model.
    first = min(folders, key=lambda path: len(path.parts))
    others = [path for path in folders if path != first and not path.is_relative_to(first)]
    if others:
        raise ModelError(f"expected one model, found {first.name} and {others[0].name}", hint="serve a folder with one")
    return first


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path.name} is not JSON: {_reason(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path.name} is no object")
    major = re.match(r"\d{1,9}", str(config.get("transformers_version", "")))
    ours = transformers.__version__
    if major and int(major[0]) > int(ours.partition(".")[0]):
        raise ModelError(
            f"{path.name} was saved by transformers {config['transformers_version']}, this server has {ours}",
            hint="server.requirements may pin a newer one, where the template takes it",
        )
    return config


def _task(config: Mapping[str, Any]) -> str:
    named = [str(name) for name in config.get("architectures") or ()]
    for name in named:
        for ending, task in ARCHITECTURES.items():
            if name.endswith(ending):
                return task
    raise ModelError(
        f"{CONFIG} names the architecture {', '.join(named) or 'of no model'}, which tells no task",
        hint=f"server.options.task is one of {', '.join(CLASSES)}",
    )


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path.name} cannot be loaded: {_reason(error)}") from error


def _network(folder: Path, task: str) -> Any:
    try:
        network, info = CLASSES[task].from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever a config can make of thousands of lines of foreign code
        raise ModelError(f"the model cannot be loaded for {task}: {_reason(error)}") from error
    # transformers makes up what weights do not have, and would answer with it. A pooler is not asked.
    missing = sorted(str(name) for name in info["missing_keys"] if not (task == "embeddings" and "pooler." in name))
    mismatched = sorted(str(name) for name in info.get("mismatched_keys", ()))
    if missing or mismatched:
        names = ", ".join((missing + mismatched)[:3])
        raise ModelError(
            f"the weights do not fit {type(network).__name__}, which {task} takes: {names}",
            hint="server.options.task says what the model is asked for",
        )
    return network


def _positions(network: Any) -> int:
    """How many tokens the model takes. RoBERTa and its kin count them from behind the number of the padding on."""
    tables = (module for name, module in network.named_modules() if name.endswith("position_embeddings"))
    before = next((number + 1 for table in tables if (number := getattr(table, "padding_idx", None)) is not None), 0)
    return int(getattr(network.config, "max_position_embeddings", None) or NO_LIMIT) - before


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # from readers of several formats
        raise ModelError(f"the tokenizer cannot be loaded: {_reason(error)}") from error
    return tokenizer


def _reason(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
