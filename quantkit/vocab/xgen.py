"""XGen's tokenizer as a tokenizer.json: GPT-2's vocabulary, whitespace runs and reserved tokens; no remote code."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from quantkit.errors import BadInputError, NetworkError, NotFoundError
from quantkit.hub.download import download
from quantkit.hub.repository import resolve

GPT2_REPOSITORY = "openai-community/gpt2"
GPT2_FILES = ("vocab.json", "merges.txt")
# Of r50k_base.tiktoken, GPT-2's ranks as tiktoken publishes them (tiktoken_ext/openai_public.py).
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
GPT2_RANKS = 50256
END_OF_TEXT = "<|endoftext|>"
LONGEST_SPACES, LONGEST_TABS = 31, 9
RESERVED = (
    "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<gh_stars>", "<issue_start>",
    "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
    "<empty_output>", "<commit_before>", "<commit_msg>", "<commit_after>", "<reponame>",
    "<dummy_0>", "<dummy_1>", "<dummy_2>", "<dummy_3>", "<sep>", "<eom>",
    *(f"<mask_{number}>" for number in range(881, 0, -1)),
)  # fmt: skip


def gpt2_vocabulary(folder: Path) -> tuple[bytes, bytes]:
    """GPT-2's vocab.json and merges.txt: from beside the checkpoint, else from the Hub through its cache.

    Raises:
        NotFoundError: neither place has them.
        BadInputError, DiskError: the download broke.
    """
    beside = [folder / name for name in GPT2_FILES]
    if all(path.is_file() for path in beside):
        return beside[0].read_bytes(), beside[1].read_bytes()
    try:
        cache = download(resolve(GPT2_REPOSITORY), GPT2_FILES)
    except (NetworkError, NotFoundError) as error:
        raise NotFoundError(
            f"XGen's tokenizer is made from GPT-2's vocabulary, which is neither in {folder} nor to be had from "
            f"{GPT2_REPOSITORY}: {error}",
            f"put GPT-2's {GPT2_FILES[0]} and {GPT2_FILES[1]} into {folder}",
        ) from error
    return (cache / GPT2_FILES[0]).read_bytes(), (cache / GPT2_FILES[1]).read_bytes()


def rebuild(vocab: bytes, merges: bytes) -> bytes:
    """The tokenizer.json that gives XGen's ids.

    After GPT-2's 50,256 ranks and `<|endoftext|>` come runs of 31 to 2 spaces and of 9 to 2 tabs, which are
    merged like any other token, and reserved tokens up to 51,199. Nothing is put in front of a text.

    Args:
        vocab: GPT-2's vocab.json.
        merges: GPT-2's merges.txt.

    Raises:
        BadInputError: they are not GPT-2's.
    """
    ids, pairs = _gpt2(vocab, merges)
    for letter, longest in (("Ġ", LONGEST_SPACES), ("ĉ", LONGEST_TABS)):  # space and tab in byte-level spelling
        for length in range(longest, 1, -1):
            ids[letter * length] = len(ids)
            pairs.append((letter * (length - 1), letter))
    for token in RESERVED:
        ids[token] = len(ids)
    tokenizer = Tokenizer(models.BPE(ids, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (END_OF_TEXT, *RESERVED)])
    return tokenizer.to_str(pretty=True).encode()


def _gpt2(vocab: bytes, merges: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The two files as tokenizers takes them, after a check that they say what tiktoken's ranks say."""
    try:
        ids = {str(token): int(number) for token, number in json.loads(vocab).items()}
        lines = merges.decode("utf-8").splitlines()
        pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
        ranks = sorted(ids, key=ids.__getitem__)[:GPT2_RANKS]
        same = _ranks_sha256(ranks) == GPT2_SHA256 and [left + right for left, right in pairs] == ranks[256:]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _other_vocabulary(str(error)) from error
    if not same or ids.get(END_OF_TEXT) != GPT2_RANKS or len(ids) != GPT2_RANKS + 1:
        raise _other_vocabulary(f"{len(ids)} tokens and {len(pairs)} merges")
    return ids, pairs


def _other_vocabulary(found: str) -> BadInputError:
    names = " and ".join(GPT2_FILES)
    return BadInputError(f"{names} are not GPT-2's: found {found}", f"take both from {GPT2_REPOSITORY}")


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right


def _ranks_sha256(ranks: Sequence[str]) -> str:
    """The hash that a .tiktoken file of these tokens would have: base64 of the bytes and the rank, a line each."""
    byte_of = _byte_of()
    digest = hashlib.sha256()
    for rank, token in enumerate(ranks):
        raw = bytes(byte_of[letter] for letter in token)
        digest.update(base64.b64encode(raw) + f" {rank}\n".encode())
    return digest.hexdigest()


def _byte_of() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
