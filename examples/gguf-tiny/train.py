"""Make a tiny language model of the llama architecture that continues the Zen of Python, letter by letter.

Its attention and its feed-forward layer keep their random weights; its last layer alone is trained, on the text that
comes with Python. Writes the model to model/, a completion to ask for to request.json, and to expected.json how it goes
on as computed here by NumPy, without llama.cpp. The same seed gives the same weights.
"""

import codecs
import contextlib
import io
import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

HERE = Path(__file__).parent
WIDTH, HEADS, INNER, CONTEXT = 256, 8, 512, 1024
EPSILON, ROPE_BASE = 1e-5, 10_000.0
STEPS = 300
BOS = 1
PROMPT, ANSWER_LENGTH = "The Zen of Python, by Tim Peters\n\nBeautiful is ", 40


def read_text() -> str:
    with contextlib.redirect_stdout(io.StringIO()):
        import this  # noqa: PLC0415 (it prints what it holds)
    return codecs.decode(this.s, "rot13")


def vocabulary(text: str) -> list[tuple[str, TokenType]]:
    """SentencePiece's: three marks, a token for each byte, and the letters, a space among them as `▁`."""
    marks = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
    octets = [(f"<0x{number:02X}>", TokenType.BYTE) for number in range(256)]
    return [*marks, *octets, *((letter.replace(" ", "▁"), TokenType.NORMAL) for letter in sorted(set(text)))]


def random_weights(size: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """By GGUF's names; a matrix has a row for each value it gives."""

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    ones = np.ones(WIDTH, np.float32)
    return {
        "token_embd.weight": random.standard_normal((size, WIDTH)).astype(np.float32),
        "blk.0.attn_norm.weight": ones,
        "blk.0.attn_q.weight": 3 * matrix(WIDTH, WIDTH),
        "blk.0.attn_k.weight": 3 * matrix(WIDTH, WIDTH),
        "blk.0.attn_v.weight": matrix(WIDTH, WIDTH),
        "blk.0.attn_output.weight": matrix(WIDTH, WIDTH),
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_gate.weight": 2 * matrix(INNER, WIDTH),
        "blk.0.ffn_up.weight": 2 * matrix(INNER, WIDTH),
        "blk.0.ffn_down.weight": matrix(WIDTH, INNER),
        "output_norm.weight": ones,
        "output.weight": np.zeros((size, WIDTH), np.float32),
    }


def hidden(weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """What the last layer sees at each token: one block of llama's, with rotary positions and causal attention."""

    def norm(values: np.ndarray) -> np.ndarray:
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + EPSILON)

    def heads(name: str) -> np.ndarray:
        return (attended @ weights[f"blk.0.{name}.weight"].T).reshape(len(tokens), HEADS, -1).transpose(1, 0, 2)

    x = weights["token_embd.weight"][tokens]
    attended = norm(x)
    query, key, value = rotate(heads("attn_q")), rotate(heads("attn_k")), heads("attn_v")
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS)
    scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed = (shares @ value).transpose(1, 0, 2).reshape(len(tokens), WIDTH)
    x = x + mixed @ weights["blk.0.attn_output.weight"].T
    inner = norm(x)
    gate = inner @ weights["blk.0.ffn_gate.weight"].T
    inner = gate / (1 + np.exp(-gate)) * (inner @ weights["blk.0.ffn_up.weight"].T)
    return norm(x + inner @ weights["blk.0.ffn_down.weight"].T)


def rotate(heads: np.ndarray) -> np.ndarray:
    """Turn each pair of neighbours by its position's angle."""
    _, length, width = heads.shape
    angles = np.arange(length)[:, None] * ROPE_BASE ** (-np.arange(0, width, 2) / width)
    turned = (heads[..., ::2] + 1j * heads[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], -1).reshape(heads.shape)


def train_last(weights: dict[str, np.ndarray], tokens: np.ndarray) -> None:
    """Softmax regression of each letter on what is seen before it, by Adam."""
    seen, wanted = hidden(weights, tokens[:-1]), tokens[1:]
    last = np.zeros(weights["output.weight"].shape)
    mean, square = np.zeros_like(last), np.zeros_like(last)
    for step in range(1, STEPS + 1):
        logits = seen @ last.T
        error = np.exp(logits - logits.max(-1, keepdims=True))
        error /= error.sum(-1, keepdims=True)
        error[np.arange(len(wanted)), wanted] -= 1
        slope = error.T @ seen / len(wanted)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        last -= 0.05 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    weights["output.weight"] = last.astype(np.float32)


def complete(weights: dict[str, np.ndarray], tokens: list[int]) -> tuple[list[int], float]:
    """The likeliest tokens that follow, and the least lead one of them had: rounding must not change the answer."""
    found, lead = [], np.inf
    for _ in range(ANSWER_LENGTH):
        logits = hidden(weights, np.array(tokens + found))[-1] @ weights["output.weight"].T
        second, first = np.sort(logits)[-2:]
        lead = min(lead, first - second)
        found.append(int(logits.argmax()))
    return found, lead


def write(path: Path, weights: dict[str, np.ndarray], words: list[tuple[str, TokenType]]) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_name("Zen of Python, letter by letter")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([kind for _, kind in words])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    text = read_text()
    words = vocabulary(text)
    numbers = {word: number for number, (word, _) in enumerate(words)}
    encode = lambda letters: [BOS, *(numbers[letter.replace(" ", "▁")] for letter in letters)]  # noqa: E731
    weights = random_weights(len(words), np.random.default_rng(0))
    train_last(weights, np.array(encode(text)))
    found, lead = complete(weights, encode(PROMPT))
    answer = "".join(words[number][0].replace("▁", " ") for number in found)

    (HERE / "model").mkdir(exist_ok=True)
    write(HERE / "model" / "zen.gguf", weights, words)
    request = {"prompt": PROMPT, "max_tokens": ANSWER_LENGTH, "temperature": 0}
    (HERE / "request.json").write_text(json.dumps(request))
    (HERE / "expected.json").write_text(json.dumps({"outputs": [{"name": "text", "shape": [1], "data": [answer]}]}))
    print(f"model/zen.gguf: {PROMPT!r} goes on as {answer!r}, each letter ahead by {lead:.2f} at least")


if __name__ == "__main__":
    main()
