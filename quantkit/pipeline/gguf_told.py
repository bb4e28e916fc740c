"""What transformers says of a checkpoint that is to become GGUF files, asked in a process of its own.

transformers and torch take 350 MB and several seconds, and are needed for the defaults of config.json and for the
tokenizer alone. In a process of their own they are gone before the first weight is read, and this one compiles its
encoders meanwhile.
"""

import contextlib
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.basecard import read_front_matter
from quantkit.errors import NotFoundError, OutOfMemoryError, QuantkitError
from quantkit.families.gguf_experts import GGUF_EXPERTS
from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.families.layers import check_layers
from quantkit.families.lookup import artifact_config
from quantkit.plan.gguf_card import Naming, naming
from quantkit.plan.gguf_rows import GgufRow, gguf_rows
from quantkit.plan.gguf_settings import complete_config, experts
from quantkit.tensors import TensorInfo
from quantkit.vocab.files import read_object
from quantkit.vocab.gguf import Vocabulary, gguf_vocabulary
from quantkit.weights.source import Checkpoint

GENERATION = "generation_config.json"
UNVERIFIED = "the tokenizer was not compared with llama.cpp's; pip install 'quantkit[ggml]' to have that"


@dataclass(frozen=True)
class Told:
    """What is known of a checkpoint once its config.json and its tokenizer were understood."""

    config: Mapping[str, Any]  # with transformers' defaults
    infos: Mapping[str, TensorInfo]  # of `.bin` files not downloaded yet, those that config.json asks for
    rows: tuple[GgufRow, ...]
    naming: Naming
    vocabulary: Vocabulary
    card: Mapping[str, Any]  # front matter
    generation: Mapping[str, Any]  # generation_config.json
    verification: str | None  # what llama.cpp's tokenizer was found to do, where it was asked


@dataclass(frozen=True)
class _Question:
    folder: Path
    reference: str
    repo_id: str | None
    config: Mapping[str, Any]
    infos: Mapping[str, TensorInfo]
    weight_map: Mapping[str, str]  # of a repository whose `.bin` files are not downloaded yet
    pre: str | None
    verified: bool


def told_apart(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
    pre: str | None,
    verified: bool,
    meanwhile: Callable[[], None],
) -> Told:
    """Ask in a process of its own.

    Args:
        checkpoint: whose tokenizer and card are read.
        config: its config.json, without what says that it is quantized.
        infos: its tensors, dequantized.
        pre: llama.cpp's pre-tokenizer; None: found by its regular expressions.
        verified: compare the tokenizer with llama.cpp's own, where that is installed.
        meanwhile: called here while the other process works.

    Raises:
        QuantkitError: what transformers, the tables or the tokenizer do not take.
        OutOfMemoryError: the system has killed the process.
    """
    question = _Question(
        checkpoint.folder.absolute(), checkpoint.reference, checkpoint.repo_id, dict(config), dict(infos),
        getattr(checkpoint.source, "weight_map", {}), pre, verified,
    )  # fmt: skip
    answer = pickle.loads(_ask(pickle.dumps(question), meanwhile))
    if isinstance(answer, QuantkitError):
        raise answer
    assert isinstance(answer, Told)
    return answer


def _ask(question: bytes, meanwhile: Callable[[], None]) -> bytes:
    command = [sys.executable, "-m", __name__]
    # A group of its own: Ctrl-C is for this process, which then ends that one.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            # Whoever ends before it has read everything says why by its exit code.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(question)
            with contextlib.suppress(BrokenPipeError):  # closing writes what is still buffered
                child.stdin.close()
            meanwhile()
            said = child.stdout.read()
        except BaseException:
            child.kill()
            raise
    if child.returncode == -signal.SIGKILL:
        raise OutOfMemoryError(
            "the process that asks transformers about the checkpoint was killed: it needs about 350 MB",
            "free memory and try again",
        )
    if child.returncode:
        raise RuntimeError(f"planning ended with exit code {child.returncode}")
    return said


def tell(question: _Question) -> Told:
    """The answer, in this process.

    Raises:
        QuantkitError: as `told_apart`.
    """
    from quantkit.pipeline.job import expected_infos
    from quantkit.vocab.load import load_tokenizer

    family, gguf = gguf_family_of(question.config)
    config = artifact_config(family, question.config)
    complete = complete_config(family, config)
    infos = question.infos or expected_infos(family, config, question.weight_map)
    if family.name not in GGUF_EXPERTS:
        check_layers(family, complete, infos)
    rows = gguf_rows(family, gguf, complete, infos)
    shapes = {row.name: row.shape for row in rows}
    reference = question.repo_id or Path(question.reference).expanduser().resolve().name
    named = naming(reference, shapes, experts(complete), on_hub=question.repo_id is not None)
    tokenizer = load_tokenizer(question.folder, config, question.repo_id)
    generation = read_object(question.folder / GENERATION)
    embedding_rows = shapes["token_embd.weight"][0]
    vocabulary = gguf_vocabulary(tokenizer, named.name, embedding_rows, question.config, generation, question.pre)
    front = read_front_matter(question.folder)
    said = _verification(vocabulary, tokenizer) if question.verified else None
    named = replace(named, name=vocabulary.name)
    # Limits hold functions, which do not travel; what they mean is in the notes.
    return Told(complete, infos, rows, named, replace(vocabulary, limits=()), front, generation, said)


def _verification(vocabulary: Vocabulary, tokenizer: Any) -> str:  # noqa: ANN401
    from quantkit.vocab.gguf_verify import llama_cpp_is_installed, verify

    if not llama_cpp_is_installed():
        return UNVERIFIED
    try:
        return verify(vocabulary, tokenizer).note
    except NotFoundError as error:  # its library is of another system or of another time
        return f"the tokenizer was not compared; {error}"


def _answer(question: bytes) -> bytes:
    """What the question is answered with, or the refusal."""
    answer: Told | QuantkitError
    try:
        answer = tell(pickle.loads(question))
    except QuantkitError as error:
        answer = error
    return pickle.dumps(answer)


if __name__ == "__main__":
    # As an importable module, so that what it pickles is found again on the other side.
    from quantkit.pipeline import gguf_told

    sys.stdout.buffer.write(gguf_told._answer(sys.stdin.buffer.read()))
