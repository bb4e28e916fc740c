"""A sentencepiece model as data, and the tokenizer.json that gives the same ids."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from quantkit.errors import BadInputError

SPACE, BOS, EOS, UNK = "▁", "<s>", "</s>", "<unk>"  # sentencepiece's own names
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # sentencepiece_model.proto, SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float  # of two possible merges sentencepiece makes the one with the higher score
    kind: int


@dataclass(frozen=True)
class SpmModel:
    """What decides the ids, with the defaults of sentencepiece_model.proto."""

    pieces: tuple[Piece, ...]
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = field(default=b"", repr=False)  # how text is normalized; empty: not at all
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    @property
    def is_llama_like(self) -> bool:
        """Whether it is what LLaMA has: BPE with byte fallback that leaves every space as it is."""
        return (
            self.model_type == BPE
            and self.byte_fallback
            and self.add_dummy_prefix
            and not self.charsmap
            and not self.remove_extra_whitespaces
            and {BOS, EOS, UNK} <= {piece.text for piece in self.pieces}
        )


def read_spm(raw: bytes) -> SpmModel:
    """Read a sentencepiece model (`tokenizer.model`) without the sentencepiece library.

    Follows sentencepiece_model.proto; what does not decide the ids is passed over.

    Raises:
        BadInputError: the bytes are no such model.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(raw):
            if number == 1:
                piece = dict(_fields(_message(value)))
                score = struct.unpack("<f", _message(piece.get(2, bytes(4))))[0]
                pieces.append(Piece(_message(piece[1]).decode("utf-8"), score, int(piece.get(3, NORMAL))))
            elif number == 2:
                trainer = dict(_fields(_message(value)))
            elif number == 3:
                normalizer = dict(_fields(_message(value)))
        model = SpmModel(
            tuple(pieces),
            model_type=int(trainer.get(3, UNIGRAM)),
            byte_fallback=bool(trainer.get(35, False)),
            charsmap=_message(normalizer.get(2, b"")),
            add_dummy_prefix=bool(normalizer.get(3, True)),
            remove_extra_whitespaces=bool(normalizer.get(4, True)),
        )
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise BadInputError(f"found no sentencepiece model: {error}") from error
    if not pieces:
        raise BadInputError("found no sentencepiece model: it has no pieces")
    return model


def rebuild(model: SpmModel, add_bos: bool = True, add_eos: bool = False, legacy: bool = True) -> bytes:
    """The tokenizer.json of a LLaMA-like model.

    Its merges are every way to put a piece together from two others, best score first: that is the order
    in which sentencepiece itself merges. transformers 5.23 takes them in the order of the vocabulary instead
    when it converts such a model; runs of spaces then come out differently.

    Args:
        model: one that `is_llama_like`.
        add_bos: whether each text gets `<s>` in front.
        add_eos: whether it gets `</s>` behind.
        legacy: whether what follows a special token gets a space in front, as the beginning of a text does;
            what `legacy` means in tokenizer_config.json, where 2023's checkpoints do not have it.
    """
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    tokenizer = Tokenizer(models.BPE(ids, _merges(model, ids), unk_token=UNK, fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([_added(piece) for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL)])
    tokenizer.add_tokens([_added(piece) for piece in model.pieces if piece.kind == USER_DEFINED])
    before, behind = "<s> " * add_bos, " </s>" * add_eos
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{before}$A{behind}",
        f"{before}$A{behind} {before}$B:1{behind}",
        [(token, ids[token]) for token in (BOS, EOS) if token in ids],
    )
    return tokenizer.to_str(pretty=True).encode()


def _merges(model: SpmModel, ids: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[float, tuple[str, str]]] = []
    for piece in model.pieces:
        if piece.kind != NORMAL:
            continue
        text = piece.text
        splits = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in ids and text[at:] in ids]
        splits.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(-piece.score, pair) for pair in splits]
    return [pair for _, pair in sorted(merges, key=lambda merge: merge[0])]


def _added(piece: Piece) -> AddedToken:
    return AddedToken(piece.text, normalized=False, special=piece.kind != USER_DEFINED)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of a protobuf message: an integer for a varint, else its bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(raw):
            raise ValueError(f"field {number} ends at byte {at + size} of {len(raw)}")
        yield number, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"an integer of more than ten bytes at byte {at}")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("an integer stands where a message was expected")
    return value
