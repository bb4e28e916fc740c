"""Whether llama.cpp's own tokenizer gives the ids of transformers', asked in a child process where it is installed."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, NotFoundError
from quantkit.vocab.corpus import corpus
from quantkit.vocab.gguf import Vocabulary
from quantkit.vocab.gguf_child import UNABLE
from quantkit.vocab.proof import MOST_SPECIAL, listed, shown
from quantkit.weights.files import disk_failure
from quantkit.weights.gguf_layout import layout
from quantkit.weights.gguf_types import Value

Tokenizer = Any  # transformers' tokenizer
CHILD = Path(__file__).with_name("gguf_child.py")
SECONDS = 600
FRAMED_EVERY = 8  # texts: what is put around them does not depend on them
WIDTH = 32  # of a model that carries nothing but a vocabulary: one Q4_0 block for each token


@dataclass(frozen=True)
class Verification:
    """What llama.cpp was found to do.

    Attributes:
        compared: texts on which it had to give the same ids.
        touched: texts that were left aside because of what llama.cpp is known to do otherwise.
        difference: the first text of which it makes other ids, as a clause; None: there is none.
    """

    compared: int
    touched: int
    difference: str | None

    @property
    def note(self) -> str:
        """A sentence for the user."""
        aside = f", {self.touched} were left aside" if self.touched else ""
        if self.difference:
            return f"llama.cpp's tokenizer was compared and differs: {self.difference}"
        return f"llama.cpp's tokenizer gives the same ids on {self.compared} texts{aside}"


def llama_cpp_is_installed() -> bool:
    """Whether the extra `quantkit[ggml]` is there."""
    return importlib.util.find_spec("xllamacpp") is not None


def verify(
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    texts: Sequence[str] | None = None,
    python: str | Path = sys.executable,
) -> Verification:
    """Compare the ids of texts, as they are and with what is put around them.

    Args:
        vocabulary: what the file will say.
        tokenizer: transformers', from which it was made.
        texts: compared; those of `corpus` if not given.
        python: an interpreter that has xllamacpp.

    Raises:
        BadInputError: llama.cpp does not load the vocabulary, or gives other ids. Where the user chose the
            pre-tokenizer, other ids are told and not refused.
        NotFoundError: there is no llama.cpp to be asked.
    """
    if texts is None:
        added = sorted(tokenizer.added_tokens_decoder.items())
        texts = corpus([str(token) for _, token in added][:MOST_SPECIAL])
    live = [text for text in texts if not any(limit.touches(text) for limit in vocabulary.limits)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        write_vocabulary(file, vocabulary)
        framed = live[::FRAMED_EVERY] if vocabulary.frames else []
        answer = ask(file, live, framed, vocabulary.name, python)
    difference = _difference(tokenizer, live, framed, answer)
    found = Verification(len(live), len(texts) - len(live), difference)
    if found.difference is not None and not vocabulary.chosen:
        raise BadInputError(
            f"llama.cpp would tokenize otherwise than {vocabulary.name} does: {found.difference}",
            "name another pre-tokenizer with --pre, or report the tokenizer to quantkit",
        )
    return found


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """A GGUF file that llama.cpp loads as a model: the vocabulary, one layer, and weights of zero.

    Args:
        path: of the file; weights take no room where the file system has sparse files.
        vocabulary: its tokens decide the rows of the embedding.

    Raises:
        DiskError: the disk refuses.
    """
    settings: Mapping[str, Value] = {
        "general.architecture": Value("string", "llama"),
        "general.name": Value("string", vocabulary.name),
        "llama.context_length": Value("uint32", WIDTH),
        "llama.embedding_length": Value("uint32", WIDTH),
        "llama.block_count": Value("uint32", 1),
        "llama.feed_forward_length": Value("uint32", WIDTH),
        "llama.attention.head_count": Value("uint32", 1),
        "llama.attention.layer_norm_rms_epsilon": Value("float32", 1e-5),
    }
    norms = [("output_norm.weight", (WIDTH,), "F32")]
    norms += [(f"blk.0.{part}_norm.weight", (WIDTH,), "F32") for part in ("attn", "ffn")]
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    linears = [(f"blk.0.{part}.weight", (WIDTH, WIDTH), "F32") for part in parts]
    tensors = [("token_embd.weight", (vocabulary.size, WIDTH), "Q4_0"), *norms, *linears]
    header = layout({**settings, **vocabulary.metadata}, tensors)
    try:
        with path.open("wb") as file:
            file.write(header.raw)
            file.truncate(header.total_bytes)
    except OSError as error:
        disk_failure(error, path, header.total_bytes)


def ask(
    file: Path, plain: Sequence[str], framed: Sequence[str], name: str, python: str | Path = sys.executable
) -> dict[str, Any]:
    """What llama.cpp makes of texts.

    Args:
        file: from `write_vocabulary`.
        plain: texts as they are.
        framed: texts that get around them what the tokenizer puts there.
        name: of the checkpoint, for messages.
        python: an interpreter that has xllamacpp.

    Returns:
        `plain` and `framed`, a list of ids for each text, and `pieces`, the bytes of the plain ids in hexadecimal.

    Raises:
        BadInputError: it does not load the file.
        NotFoundError: there is no llama.cpp to be asked.
    """
    try:
        done = subprocess.run(  # -P: modules of the working directory are not imported
            [str(python), "-P", str(CHILD), str(file)],
            input=json.dumps({"plain": list(plain), "framed": list(framed)}).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BadInputError(f"llama.cpp did not tokenize for {name} within {SECONDS} s") from error
    if done.returncode == UNABLE:
        raise NotFoundError(
            f"llama.cpp's tokenizer cannot be asked: {done.stderr.decode('utf-8', 'replace').strip()}",
            "install quantkit[ggml]",
        )
    if done.returncode:
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        reason = next((line for line in said if "error" in line.lower()), said[-1] if said else "")
        raise BadInputError(f"llama.cpp does not take the vocabulary of {name} (exit code {done.returncode}): {reason}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _difference(
    tokenizer: Tokenizer, plain: Sequence[str], framed: Sequence[str], answer: Mapping[str, Any]
) -> str | None:
    for texts, way, special in ((plain, "plain", False), (framed, "framed", True)):
        expected = tokenizer(list(texts), add_special_tokens=special)["input_ids"] if texts else []
        for text, ids, found in zip(texts, expected, answer[way], strict=True):
            if ids != found:
                return f"of {shown(text)} it makes {listed(found)}, expected {listed(ids)}"
    return None
