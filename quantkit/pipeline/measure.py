"""An artifact at work: loaded by its runtime in a child process, memory and tokens per second measured."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.units import format_seconds
from quantkit.weights.gguf_names import find_gguf
from quantkit.weights.gguf_read import open_gguf

PROMPT_TOKENS = 512
NEW_TOKENS = 64
LONGEST_SECONDS = 2 * 3600.0  # loading and two runs; this ends what hangs
CHILD = Path(__file__).with_name("measure_child.py")


@dataclass(frozen=True)
class Runtime:
    """What runs a format."""

    loader: str  # in the child
    named: tuple[str, ...]  # packages that carry the figure
    packages: tuple[str, ...]  # all that must be there
    install: str


# By what config.json says under quant_method, or `gguf`. Another runtime takes a row here and a loader in the child.
RUNTIMES = {
    None: Runtime("plain", ("transformers",), ("transformers", "torch"), "pip install transformers torch"),
    "gptq": Runtime(
        "gptq",
        ("transformers", "gptqmodel"),
        ("transformers", "gptqmodel", "optimum", "accelerate", "torch"),
        "pip install gptqmodel 'optimum>=1.24'",
    ),
    "gguf": Runtime("gguf", ("xllamacpp",), ("xllamacpp",), "pip install xllamacpp"),
}
# Not for a process that needs no network, nor for one that may be of another environment.
WITHHELD = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "OMP_WAIT_POLICY",
)


def measure(
    path: Path,
    python: str | None = None,
    device: str = "auto",
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    seconds: float = LONGEST_SECONDS,
) -> dict[str, Any] | str:
    """Load a checkpoint in a child process, let it generate and measure that.

    Args:
        path: the folder of a GPTQ artifact or a 16-bit checkpoint, or a GGUF file.
        python: interpreter of an environment that has the runtime; this one unless told.
        device: auto, cpu, cuda or cuda:N; a GGUF file is measured on the CPU.
        prompt_tokens: of the prompt; less where the model reads no more.
        new_tokens: to be written, at least two.
        seconds: after which the child is ended.

    Returns:
        `runtime` with versions, `device`, `dtype`, `context` (tokens at the end), `peak_bytes` (of the process; on a
        GPU what torch reserved there, without CUDA's own context), `before_bytes` (of the process before
        it loaded anything), `load_seconds`, `prompt_tokens`, `prompt_tokens_per_second`, `new_tokens` and
        `generation_tokens_per_second`. Or a sentence that says why there are no figures.

    Raises:
        UsageError: the interpreter cannot be started.
    """
    model = _gguf(path) if find_gguf(path) else _folder(path)
    method = model.method
    if method not in RUNTIMES:
        return f"no runtime for {method!r} is known here"
    runtime, python = RUNTIMES[method], _interpreter(python)
    room = model.longest
    if model.vocabulary == 0:
        return "it has no vocabulary, without which llama.cpp writes nothing"
    if room < 4:
        return f"the model reads {room} tokens at once, too few to measure"
    new_tokens = min(new_tokens, room // 2)
    request = {
        "path": str(path.resolve()),
        "loader": runtime.loader,
        "packages": runtime.packages,
        "device": device,
        "prompt_tokens": min(prompt_tokens, room - new_tokens),
        "new_tokens": new_tokens,
        "vocabulary": model.vocabulary,
    }
    answer = _ask(python, request, seconds)
    if isinstance(answer, str):
        return answer
    if missing := answer.get("missing"):
        are = "is" if len(missing) == 1 else "are"
        return f"{', '.join(missing)} {are} not installed for {python}: {runtime.install}"
    if "error" in answer:
        return str(answer["error"])
    versions = answer.pop("packages")
    label = " + ".join(f"{name} {versions[name]}" for name in runtime.named)
    return {"runtime": label, "context": answer["prompt_tokens"] + answer["new_tokens"]} | answer


def _interpreter(python: str | None) -> str:
    """Where an interpreter is; a link in an environment is not followed, since it tells which environment."""
    found = shutil.which(Path(python).expanduser()) if python else sys.executable
    if not found:
        raise UsageError(f"--runtime-python {python} is no program", "name the python of the environment to use")
    return str(Path(found).absolute())


@dataclass(frozen=True)
class _Model:
    """What has to be known of a model before it runs."""

    method: str | None  # a key of RUNTIMES
    longest: int  # tokens that it reads at once
    vocabulary: int | None = None  # ids; None: the runtime knows


def _folder(folder: Path) -> _Model:
    config = _config(folder)
    quantization = config.get("quantization_config")
    method = str(quantization.get("quant_method", "gptq")) if isinstance(quantization, dict) else None
    return _Model(method, int(config.get("max_position_embeddings") or PROMPT_TOKENS + NEW_TOKENS))


def _gguf(file: Path) -> _Model:
    told = {key: value.value for key, value in open_gguf(file).metadata.items()}
    longest = told.get(f"{told.get('general.architecture')}.context_length")
    tokens = told.get("tokenizer.ggml.tokens")
    return _Model(
        "gguf",
        longest if isinstance(longest, int) else PROMPT_TOKENS + NEW_TOKENS,
        len(tokens) if isinstance(tokens, Sequence) else 0,
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}  # the runtime will say what is wrong with it
    return config if isinstance(config, dict) else {}


def _ask(python: str, request: dict[str, Any], seconds: float) -> dict[str, Any] | str:
    """What the child answers, or why it did not."""
    environment = {name: value for name, value in os.environ.items() if name not in WITHHELD}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as elsewhere, tempfile.TemporaryFile() as said, os.fdopen(reading, "rb") as pipe:
        try:
            child = subprocess.Popen(
                [python, CHILD, str(writing), json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[writing],
                cwd=elsewhere,  # runtimes leave logs behind
                env=environment,
                start_new_session=True,  # they start processes of their own, which end with it
            )
        except OSError as error:
            raise UsageError(f"cannot start {python}: {error.strerror}") from error
        finally:
            os.close(writing)
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"it did not end within {format_seconds(seconds)}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        answer = pipe.read()
        if code == 0 and answer:
            return dict(json.loads(answer))
        said.seek(0)
        return _why(code, said.read().decode("utf-8", "replace"))


def _why(code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, as systems do when memory runs out"
    last = (said.strip() or "it said nothing").splitlines()[-1][:300]
    return f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}: {last}"
