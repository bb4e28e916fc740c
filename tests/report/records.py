"""A record of a check as `quantkit check` makes it, with as many artifacts as asked for; plain numbers, no model."""

import copy


def metrics(loss, perplexity=20.0):
    return {
        "tokens": 1000, "perplexity": perplexity * (1 + loss), "perplexity_error": 0.5, "perplexity_ratio": 1 + loss,
        "perplexity_ratio_error": loss / 10, "kl_mean": loss, "kl_error": loss / 20, "kl_median": loss / 2,
        "kl_90": 2 * loss, "kl_99": 6 * loss, "kl_99_9": 9 * loss, "kl_max": 20 * loss, "top1_agreement": 1 - loss,
        "top1_error": 0.002, "top5_agreement": 1 - loss / 2, "shift_mean": -loss / 10, "shift_rms": loss / 3,
    }  # fmt: skip


def all_metrics(loss):
    languages = {"en": metrics(loss), "zh": metrics(2 * loss), "unknown": metrics(loss / 2)}
    return {
        "all": metrics(loss),
        "texts": {"english": metrics(loss), "chinese": metrics(2 * loss)},
        "languages": languages,
    }


def weight_set(name, bits, loss):
    weights = int(13e9 * (bits or 16) / 8)
    return {
        "name": name, "repo": None, "commit": None, "format": f"GPTQ {bits} bits, group 128" if bits else "16 bits",
        "bits": bits, "bits_per_weight": (bits or 16) + 0.25 * bool(bits), "files": {"model.safetensors": "ab" * 32},
        "file_bytes": weights + 1000, "metrics": all_metrics(loss),
        "memory": {
            "weight_bytes": weights, "context": 4096, "kv_bytes": 3 << 30, "overhead_bytes": 858993459,
            "predicted_bytes": weights + (3 << 30) + 858993459, "ratio": weights / 26e9, "measured": None,
        },
    }  # fmt: skip


def artifact(number, name=None):
    bits, loss = (8, 0.002) if number == 0 else (4, 0.02 * number)
    entry = weight_set(name or f"artifact-{number}", bits, loss)
    names = [f"model.layers.{layer}.{linear}" for layer in range(3) for linear in ("self_attn.q_proj", "mlp.down_proj")]
    passed = number % 2 == 0
    sentence = f"mean KL divergence {loss:.4f}, allowed 0.0300"
    gate = {
        "name": "mean KL divergence",
        "limit": "0.0300",
        "found": f"{loss:.4f}",
        "passed": passed,
        "sentence": sentence,
    }
    entry |= {
        "drift": [loss / 4, loss / 2, loss],
        "linears": [
            {"name": one, "error": loss / (1 + i), "worst_row": i, "worst_row_error": loss, "slope": 0.99, "bias": 0.3,
             "output_error": loss / 10}
            for i, one in enumerate(names)
        ],
        "intact": {"changed": []}, "gates": [gate], "passed": passed,
    }  # fmt: skip
    return entry


def record(artifacts=2, names=()):
    """A whole record; `names` replace those of the artifacts."""
    made = [artifact(number, *names[number : number + 1]) for number in range(artifacts)]
    return {
        "schema_version": 1,
        "versions": {"quantkit": "0.1.0", "torch": "2.13.0"},
        "evaluation": {
            "windows": "windows of 512 tokens, stride 512, 1 prefix tokens", "count": 2, "context": 512, "stride": None,
            "like_llama_cpp": False, "prefix": [1], "tokens": 2000, "dtype": "bfloat16", "device": "cpu",
            "texts": [
                {"name": "english", "language": "en", "sha256": "cd" * 32, "tokens": 1000},
                {"name": "chinese", "language": "zh", "sha256": "ef" * 32, "tokens": 1000},
            ],
            "notes": [],
        },
        "predicted": {"host_bytes": 2 << 30, "seconds": 100.0},
        "measured": {"host_bytes": 2 << 30, "seconds": 90.0},
        "baseline": weight_set("baseline", None, 0.0),
        "artifacts": made,
        "passed": all(one["passed"] for one in made),
    }  # fmt: skip


def with_answers(made, prompt="What is 67*39?", said="It is 2613."):
    """The record with one prompt, answered by everybody."""
    made = copy.deepcopy(made)
    made["prompts"] = [{"id": "sum", "kind": "arithmetic", "language": "en", "prompt": prompt, "expected": "2613"}]
    made["chat_template"] = True
    item = {"id": "sum", "text": said, "tokens": 5, "finished": True, "correct": True, "first_difference": None,
            "agreed_text": said, "rest": "", "baseline_choice": None}  # fmt: skip
    other = item | {"correct": False, "first_difference": 2, "agreed_text": "It is", "rest": " 2614."}
    other |= {"text": "It is 2614.", "baseline_choice": " 2613"}
    shared = {"identical_share": 1.0, "correct": [1, 1], "mode": "generated"}
    made["baseline"]["answers"] = shared | {"items": [item], "identical_share": None}
    for number, entry in enumerate(made["artifacts"]):
        entry["answers"] = shared | {"items": [other if number else item], "identical_share": float(not number)}
    return made
