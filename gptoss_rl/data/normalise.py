"""When two problem texts are the same problem."""

import re
import unicodedata

LATEX_SPACING = re.compile(r"\\[,;:!> ]|\\q?quad\b|\\(?:left|right|displaystyle|limits)\b|~|\\\\")
DECORATION = re.compile(r"\\[\[\]()]|[$*_#{}]|\\(?:text|mathrm|mathbf|textbf|textit|dfrac|tfrac)(?![a-z])")
WORD = re.compile(r"[a-z]+|[0-9]+(?:\.[0-9]+)?|[^\sa-z0-9]")
SHINGLE = 3  # words


def normalise(text: str) -> str:
    """Unicode, LaTeX spacing and case removed; words, numbers and operators kept, with one space between them."""
    text = unicodedata.normalize("NFKC", text)
    text = LATEX_SPACING.sub(" ", text)
    text = DECORATION.sub(" ", text).lower()
    return " ".join(token for token in WORD.findall(text) if token not in {".", ",", "?", "!", ":", ";", "'", '"'})


def shingles(normalised: str, size: int = SHINGLE) -> set[str]:
    """Overlapping runs of `size` words; the whole text when it is shorter."""
    words = normalised.split()
    if len(words) <= size:
        return {normalised}
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0
