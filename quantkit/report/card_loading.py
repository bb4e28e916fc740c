"""How to load an artifact: commands that can be pasted into a shell, and which versions were tried."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.formats.runtimes import GGUF_RUNTIMES, RUNTIMES
from quantkit.report.card_facts import Artifact, Model
from quantkit.report.card_text import Markdown, fence, table

PYTHON = """from transformers import AutoModelForCausalLM, AutoTokenizer

name = {place}
model = AutoModelForCausalLM.from_pretrained(name, device_map="auto"{revision})
tokenizer = AutoTokenizer.from_pretrained(name{revision})
"""
CHAT = """chat = [{"role": "user", "content": "Tell me about yourself."}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
TEXT = """inputs = tokenizer("Once upon a time", return_tensors="pt")
"""
GENERATE = """outputs = model.generate(**inputs.to(model.device), max_new_tokens=100)
print(tokenizer.decode(outputs[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
OPTIMUM, GPTQMODEL = ("1.24", "2.3"), ("1.4.3", "7.7")  # the oldest that will do, and the one that was run


@dataclass(frozen=True)
class Way:
    """One way to load the artifact."""

    title: str
    text: str  # which version is known to, and from what
    blocks: tuple[Markdown, ...]


def ways(artifact: Artifact, place: str, branch: str | None, has_template: bool) -> list[Way]:
    """How to load it, the most used first.

    Args:
        artifact: GPTQ or GGUF.
        place: organisation/name, or a folder's name where it is not published.
        branch: of the repository; None: the default one.
        has_template: whether the tokenizer has a chat template.
    """
    if artifact.manifest.method == "gguf":
        return _gguf_ways(artifact.models, place)
    (model,) = artifact.models
    loads = {name for name, answer in model.record["runtimes"].items() if answer == "loads"}
    found = [_transformers(model, place, branch, has_template)] if "transformers" in loads else []
    for name, command, option in (
        ("vllm", "vllm serve {}", "--revision"),
        ("sglang", "python -m sglang.launch_server --model-path {}", "--revision"),
    ):
        if name in loads:
            line = command.format(shlex.quote(place)) + (f" {option} {shlex.quote(branch)}" if branch else "")
            found.append(Way(RUNTIMES[name].label, _known(name), (fence(line, "sh"),)))
    return found


def runtimes(model: Model) -> Markdown:
    """Which runtime loads a GPTQ artifact, and from what that is known."""
    answers: Mapping[str, str] = model.record["runtimes"]
    rows = [
        [f"{runtime.label} {runtime.version}".strip(), answers[name], "run" if runtime.tried else "its source was read"]
        for name, runtime in RUNTIMES.items()
        if name in answers
    ]
    return table(["runtime", "this artifact", "known from"], rows, "ttt")


def _transformers(model: Model, place: str, branch: str | None, has_template: bool) -> Way:
    oldest = {"transformers": model.record["first_transformers"], "optimum": OPTIMUM[0], "gptqmodel": GPTQMODEL[0]}
    install = "pip install " + " ".join(shlex.quote(f"{name}>={number}") for name, number in oldest.items())
    revision = f", revision={json.dumps(branch)}" if branch else ""
    code = PYTHON.format(place=json.dumps(place), revision=revision) + (CHAT if has_template else TEXT) + GENERATE
    tried = f"transformers {RUNTIMES['transformers'].version}, optimum {OPTIMUM[1]} and gptqmodel {GPTQMODEL[1]}"
    blocks = fence(install, "sh"), fence(code, "python")
    return Way("transformers", f"Files of this form were run with {tried}.", blocks)


def _known(name: str) -> str:
    runtime = RUNTIMES[name]
    who = f"{runtime.label} {runtime.version}".strip()
    if runtime.tried:
        return f"Files of this form were run with {who}."
    return f"The source of {who} was read: it takes files of this form. It was not run."


def _gguf_ways(models: tuple[Model, ...], place: str) -> list[Way]:
    chosen = usual(models)
    published = "/" in place
    tag = f"{place}:{chosen.label}"
    if published:
        commands = [f"llama-cli -hf {shlex.quote(tag)}", f"llama-server -hf {shlex.quote(tag)}"]
    else:
        commands = [f"llama-cli -m {shlex.quote(f'{place}/{chosen.files[0]}')}"]
    found = []
    for runtime in GGUF_RUNTIMES.values():
        if runtime.name == "llama.cpp":
            found.append(Way(runtime.label, runtime.known, (fence("\n".join(commands), "sh"),)))
        elif published:
            found.append(Way(runtime.label, runtime.known, (fence(f"ollama run {shlex.quote('hf.co/' + tag)}", "sh"),)))
    if published:
        names = " ".join(shlex.quote(name) for name in chosen.files)
        line = f"hf download {shlex.quote(place)} {names} --local-dir ."
        found.append(Way("The file alone", "", (fence(line, "sh"),)))
    return found


def usual(models: tuple[Model, ...]) -> Model:
    """The model that commands name: Q4_K_M where there is one, else the smallest."""
    return next((model for model in models if model.label == "Q4_K_M"), models[0])
