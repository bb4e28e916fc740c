"""Train the tiny Llama of this folder: a real decoder that knows two old books almost by heart.

Rounding hardly hurts a model that has learned little, so the example must be overfitted on
purpose: no dropout, no weight decay, a high learning rate, dozens of passes over the same text.

    python train.py --text pride.txt alice.txt --out . --minutes 28
"""

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from gutenberg import book_text, source_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

BOS = "<|endoftext|>"
SEQUENCE = 512
BATCH = 4
PEAK_RATE = 3e-3
WARMUP_STEPS = 200
CONFIG = LlamaConfig(
    vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=SEQUENCE,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, use_cache=True,
)  # fmt: skip
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": SEQUENCE,
    "bos_token": BOS, "eos_token": BOS, "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}  # fmt: skip
VERSIONS = {
    "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
}  # fmt: skip
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", type=Path, required=True, help="Gutenberg .txt files")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=28, help="length of the cosine schedule")
    args = parser.parse_args()
    os.nice(5)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [book_text(path) for path in args.text]
    tokenizer = train_tokenizer(texts, args.out)
    tokens = torch.tensor([token for text in texts for token in tokenizer.encode(text).ids])
    record = {"sources": [source_of(path) for path in args.text], "text_tokens": len(tokens)} | VERSIONS
    newline = tokenizer.encode("\n").ids[0]
    train(LlamaForCausalLM(CONFIG), tokens, newline, args.minutes, args.out, record)


def train_tokenizer(texts: list[str], out: Path) -> Tokenizer:
    """A byte-level BPE; it adds no BOS of its own, so text maps to tokens and back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size, special_tokens=[BOS], initial_alphabet=alphabet,
        show_progress=False,
    ))  # fmt: skip
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(out / "special_tokens_map.json", {"bos_token": BOS, "eos_token": BOS})
    return tokenizer


def train(
    model: LlamaForCausalLM, tokens: torch.Tensor, newline: int, minutes: float, out: Path, record: Record
) -> None:
    """One cosine of the given minutes, saved every five with what was done added to `record`.

    The clock drives the cosine, so a slower machine makes fewer steps but still anneals to zero.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0)
    forward = torch.compile(model)
    line_starts = torch.nonzero((tokens[:-1] == newline) & (tokens[1:] != newline))[:, 0] + 1
    step, last_save, progress, mean_loss = 0, 0.0, 0.0, 0.0
    start = time.monotonic()
    while progress < 1:
        rate = PEAK_RATE * min((step + 1) / WARMUP_STEPS, (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = draw_windows(tokens, line_starts)  # [BATCH, SEQUENCE]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = forward(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, elapsed = step + 1, time.monotonic() - start
        progress = elapsed / (minutes * 60)
        mean_loss += (loss.item() - mean_loss) / min(step, 100)  # remembers about 100 steps
        record |= {"steps": step, "tokens_seen": step * BATCH * SEQUENCE, "seconds": round(elapsed)}
        record["final_loss"] = round(mean_loss, 4)
        if step % 50 == 0:
            print(f"step {step}, {elapsed:.0f} s, loss {mean_loss:.4f}, rate {rate:.2e}", flush=True)
        if elapsed - last_save > 300 or progress >= 1:
            last_save = elapsed
            save(model, out, record)


def draw_windows(tokens: torch.Tensor, line_starts: torch.Tensor) -> torch.Tensor:
    """Half the windows start anywhere; half are BOS and a start of line, so BOS can be sampled."""
    anywhere = torch.randint(len(tokens) - SEQUENCE, (BATCH,))
    lines = line_starts[torch.randint(len(line_starts), (BATCH,))].clamp(max=len(tokens) - SEQUENCE)
    starts = torch.where(torch.arange(BATCH) % 2 == 0, anywhere, lines - 1)
    windows = tokens[starts[:, None] + torch.arange(SEQUENCE)]
    windows[1::2, 0] = CONFIG.bos_token_id
    return windows


def save(model: LlamaForCausalLM, out: Path, record: Record) -> None:
    """Write a bf16 copy; the training weights stay fp32."""
    rounded = LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    # transformers 4 reads these names, transformers 5 writes others.
    write_json(out / "config.json", config | {"torch_dtype": "bfloat16", "rope_theta": 10000.0})
    write_json(out / "training.json", record)


def write_json(path: Path, value: Record) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
