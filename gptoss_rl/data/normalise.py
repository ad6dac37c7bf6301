"""When two problem texts are the same problem."""

import re
import unicodedata

# One spelling of what LaTeX, HTML and Unicode write in several ways; before anything is dropped.
SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<sup>", "^"),
        (r"</?(?:br|p|b|i|u|em|strong|sub|sup)\s*/?>", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac \1 \2"),
        (r"\\(le|ge|ne)q(?:slant)?(?![a-zA-Z])", r"\\\1"),
    )
)
POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ⁻]+")  # NFKC makes 23 of 2³
SAME = str.maketrans({"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "×": r"\times ", **dict.fromkeys("‐‑‒–—−", "-"),
                      **dict.fromkeys("‘’‚‛“”„′`´", "'")})  # fmt: skip
LATEX_SPACING = re.compile(r"\\[,;:!> ]|\\q?quad\b|\\(?:left|right|displaystyle|textstyle|limits|[lc]?dots)\b|~|\\\\")
DECORATION = re.compile(
    r"\\(?:[\[\]()$*_#{}]|(?=[%&])|(?:(?:text|math)(?:rm|bf|it|sf|tt|bb)?|operatorname|boldsymbol|bm|emph)(?![a-z]))"
)
# Punctuation and what LaTeX groups or sets off with is no word.
WORD = re.compile(r"""[a-z]+|[0-9]+(?:\.[0-9]+)?|[^\sa-z0-9.,?!:;'"$*_#{}]""")
LETTERS = re.compile(r"(?<![a-z^_])[a-z](?:\s+[a-z])+(?![a-z])")  # A B C D is the quadrilateral ABCD
BLANKS = re.compile(r"\s+")
SHINGLE = 3  # words


def normalise(text: str) -> str:
    """Case and ways of spelling removed; words, numbers and operators kept, with one space between them."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", POWER.sub(r"^\g<0>", text)).translate(SAME)
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    text = LETTERS.sub(lambda run: BLANKS.sub("", run[0]), LATEX_SPACING.sub(" ", text).lower())
    return " ".join(WORD.findall(DECORATION.sub(" ", text.replace("`", "'"))))


def shingles(normalised: str, size: int = SHINGLE) -> set[str]:
    """Overlapping runs of `size` words; the whole text when it is shorter."""
    words = normalised.split()
    if len(words) <= size:
        return {normalised}
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0
