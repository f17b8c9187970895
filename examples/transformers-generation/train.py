"""Train a tiny GPT-2 on the documentation of Python's standard library, which it goes on with as it can.

Writes the model and its tokenizer to model/, and a request with prompts, with what transformers itself generates, to
request.json and expected.json.
"""

import inspect
import json
import socket
import threading
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
PROMPTS = ["Wait until", "Return the", "Create a new", "This method"]
NEW_TOKENS = 12  # as in mlimg.yaml
BLOCK = 64


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing by more
    text = documentation()
    tokenizer = train_tokenizer(text)
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    blocks = tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=2 * BLOCK, n_embd=64, n_layer=2, n_head=4, **ends)
    model = GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        for batch in blocks[torch.randperm(len(blocks))].split(16):
            loss = model(input_ids=batch, labels=batch).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    model.save_pretrained(HERE / "model")
    tokenizer.save_pretrained(HERE / "model")

    generated = [go_on(model, tokenizer, prompt) for prompt in PROMPTS]
    asked = {"name": "text", "datatype": "BYTES", "shape": [len(PROMPTS)], "data": PROMPTS}
    answer = {"name": "generated", "shape": [len(PROMPTS)], "data": generated}
    (HERE / "request.json").write_text(json.dumps({"inputs": [asked]}))
    (HERE / "expected.json").write_text(json.dumps({"outputs": [answer]}))
    print(f"model/: {PROMPTS[0]!r} goes on with {generated[0]!r}")


def go_on(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    batch = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def documentation() -> str:
    """What two modules say of all that they define."""
    texts = set()
    for module in (socket, threading):
        kinds = [kind for kind in vars(module).values() if inspect.isclass(kind)]
        for thing in [*vars(module).values(), *(part for kind in kinds for part in vars(kind).values())]:
            if callable(thing) and (text := inspect.getdoc(thing)):
                texts.add(" ".join(text.split()))
    return "<|end|>".join(sorted(texts))


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")  # noqa: S106


if __name__ == "__main__":
    main()
