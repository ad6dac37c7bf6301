"""Prompt lengths in tokens. For nearly all problems the text decides whether they are within bounds, and none is counted."""

import re
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer, decoders, models

from gptoss_rl.data.files import DataError

SPACES = " \t\n\r\f\v"
# How a byte-level vocabulary spells them: byte b below 33 as the character 256 + b.
SPELT = SPACES + "".join(chr(256 + ord(space)) for space in SPACES)
JOINED = re.compile(f"[^{SPELT}][{SPELT}]+[A-Za-z0-9]")
WORD_START = f"(?:^|[{SPACES}])[A-Za-z0-9]"


def load_tokenizer(path: Path) -> Tokenizer:
    """From a model's directory or a tokenizer.json.

    Raises:
        DataError: there is none, or it is none.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path} is missing; pass --tokenizer MODEL_DIRECTORY, or --tokenizer none to keep every length")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{path} is no tokenizer.json ({error})") from error


def splits_words(tokenizer: Tokenizer) -> bool:
    """Whether no token holds less than a byte, nor the starts of two words: then bytes and words bound the number of tokens."""
    plain = isinstance(tokenizer.model, models.BPE) and isinstance(tokenizer.decoder, decoders.ByteLevel)
    return plain and tokenizer.normalizer is None and not any(map(JOINED.search, tokenizer.get_vocab()))


class Lengths:
    """Which texts are too short or too long, in tokens.

    Attributes:
        counted: texts that had to be tokenized so far.
    """

    def __init__(self, tokenizer: Tokenizer, least: int, most: int):
        self.tokenizer, self.least, self.most = tokenizer, least, most
        self.bounded = splits_words(tokenizer)
        self.counted = 0

    def judge(self, texts: list[str]) -> list[str | None]:
        """Of each text "short", "long", or None when it is within bounds."""
        series = pl.Series(texts, dtype=pl.String)
        # One byte more, for a tokenizer that puts a space before the text.
        within = (series.str.count_matches(WORD_START) >= self.least) & (series.str.len_bytes() + 1 <= self.most)
        open_ones = [position for position, inside in enumerate(within) if not (inside and self.bounded)]
        verdicts: list[str | None] = [None] * len(texts)
        encoded = self.tokenizer.encode_batch_fast([texts[position] for position in open_ones], add_special_tokens=False)
        for position, encoding in zip(open_ones, encoded, strict=True):
            count = len(encoding.ids)
            verdicts[position] = "short" if count < self.least else "long" if count > self.most else None
        self.counted += len(open_ones)
        return verdicts
