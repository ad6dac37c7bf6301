r"""The grader: pure exact match of the last boxed answer with an integer label.

    reward = 1.0 if extracted_answer == ground_truth else 0.0

The one place where answers are read: training (OpenRLHF loads this file by path), every filter and every
evaluation use it. It imports the standard library alone, raises on no response, and takes linear time.

    python reward_func_em.py grade runs/NAME/eval.jsonl    # grade stored responses again, show what flipped

What counts. Of a response with Harmony markers only the body of the assistant's last message in the final
channel; without one (it was cut off in the analysis) there is no answer. Any other response counts as a whole.

The answer is the content of the last `\boxed{...}` with balanced braces. There is none when that box is empty
or when a later one was opened and never closed (the response was cut off while answering). A box inside a box
belongs to the outer one; `\boxed 5` and `\fbox{5}` are no boxes. No fallback to the last number of the text.

The number is compared exactly, without floating point; `read_number` lists what is read into it.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

# The part of a response that counts. `<|endoftext|>` makes no response Harmony: other models end with it too.
HARMONY_MARKER = re.compile(r"<\|(?:start|channel|message|constrain|end|return|call)\|>")
ANY_MARKER = re.compile(r"<\|(?:start|channel|message|constrain|end|return|call|startoftext|endoftext)\|>")
START, ROLE = "<|start|>", "assistant"
# Nothing but a content type may follow `final`: with a recipient (`final to=...`) the message is a tool call.
FINAL_HEADER = re.compile(r"\s*<\|channel\|>\s*final\s*(?:<\|constrain\|>\s*\w+\s*)?<\|message\|>")

# The box. Escaped braces open and close nothing, and neither does the brace's neighbour in `\\{`; but a box
# that was escaped once too often, `\\boxed{5}`, is meant as one.
BOX_OR_BRACE = re.compile(r"(\\boxed(?![A-Za-z])\s*\{)|\\\\(?!boxed(?![A-Za-z]))|\\[{}]|[{}]")

# The number. A narrow space is Unicode's `\,`.
SAME = str.maketrans({"\u2212": "-", "\u2009": "\\,", "\u202f": "\\,"})
TOKEN = re.compile(r"\s+|[0-9]+|[A-Za-z]+|\\[A-Za-z]+|\\.|.", re.DOTALL)
BLANKS = {" ", "~", "\\ ", "\\,", "\\;", "\\:", "\\!", "\\quad", "\\qquad", "\\displaystyle"}
MATH_MODE = {("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")}
TEXT_STYLES = {"\\text", "\\textrm", "\\textbf", "\\textit", "\\textsf", "\\textnormal", "\\mbox", "\\mathrm"}
STYLES = TEXT_STYLES | {"\\mathbf", "\\mathit", "\\mathsf", "\\boldsymbol", "\\bm", "\\boxed"}
GREEK = {f"\\{name}" for name in ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega")}
DEGREES = {"\\circ", "\\degree"}
POWERS = {"2", "3", "-1", "-2", "-3"}
# Units that need no \text. Only listed ones, because other letters are variables: 5x and 5 ab are not 5.
UNIT_WORDS = """
    unit units degree degrees radians percent dollar dollars cent cents mm cm km inch inches ft foot feet yard yards
    mile miles meter meters metre metres kg gram grams lb lbs pound pounds oz ml liter liters litre litres second
    seconds minute minutes hour hours day days week weeks month months year years mph point points people student
    students way ways
"""
UNITS = frozenset(UNIT_WORDS.split())
# With those, all that \mathrm may hold and a word of two letters in \text may be: 5\mathrm{ln} and 5\text{xy} are not 5.
UNIT_SYMBOLS = """
    in yd hr hrs min mins sec secs sq square cubic mg gm dm nm mb gb kb kw hz rad pa kpa ev mol kcal rpm kph kmh am pm th st
    nd rd
"""
SHORT_UNITS = UNITS | frozenset(UNIT_SYMBOLS.split())
UNIT_LETTERS = frozenset("msghlLNJWVCF")  # alone in \text; any other letter is a variable, 5\mathrm{i}, or 5 million
# Words that make another number of the one before them; they are no unit, in \text or out of it.
NUMBER_WORDS = """
    and or to plus minus not negative pi squared cubed factorial root log sin cos tan exp infinity double triple
    base binary ternary octal hex hexadecimal mod modulo half halves third thirds quarter fourths fifths sixths sevenths
    eighths ninths tenths hundredths thousandths millionths dozen dozens score gross hundred hundreds thousand thousands
    grand myriad lakh lakhs crore crores mil million millions billion billions trillion trillions quadrillion quadrillions
    quintillion quintillions sextillion septillion octillion nonillion decillion zero one two three four five six seven
    eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty
    sixty seventy eighty ninety
"""
NO_UNITS = frozenset(NUMBER_WORDS.split())
MARKS_IN_TEXT = frozenset("./'()-%\u00b0") | {"\\%"}

# One separator throughout; `,\!` is how many data sets write it. A plain space separates nothing.
GROUPED = re.compile(
    r"(?P<whole>[1-9][0-9]{0,2}(?P<mark>,\\!|,|\{,\}|\\,)[0-9]{3}(?:(?P=mark)[0-9]{3})*)(?:\.(?P<part>[0-9]*))?"
)
DECIMAL = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?")
SLASHED = re.compile(r"([0-9]+) ?/ ?([0-9]+)")
STACKED = re.compile(r"\\[dtc]?frac ?(?:\{ ?([+-]?[0-9]+) ?\}|([0-9])) ?(?:\{ ?([+-]?[0-9]+) ?\}|([0-9]))")
NO_DIGIT = re.compile(r"[^0-9]+")
LABEL = re.compile(r"[+-]?[0-9]+")
# int() reads this many digits under every setting of Python's limit on them (sys.set_int_max_str_digits).
# No label may be longer, so a longer number in an answer equals none.
MAX_DIGITS = 640


@dataclass(frozen=True)
class Grade:
    """What became of one response."""

    answer: str | None  # content of the last box, as written
    value: Fraction | None  # the number it was read as; None when it is no single number
    correct: bool
    final_channel: bool  # a final message was reached, or the response is not Harmony


def final_text(response: str) -> str | None:
    """The part of a response that counts; None when a Harmony response has no final message.

    A message starts where the response does (the prompt ends with `<|start|>assistant`) or after a later
    `<|start|>assistant`. A channel header anywhere else starts none: a box quoted behind it is still analysis.
    """
    if HARMONY_MARKER.search(response) is None:
        return response
    messages = response.split(START)
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if index > 0 and not message.startswith(ROLE):
            continue
        header = FINAL_HEADER.match(message, len(ROLE) if index > 0 else 0)
        if header is not None:
            end = ANY_MARKER.search(message, header.end())
            return message[header.end() : end.start() if end else len(message)]
    return None


def last_box(text: str) -> str | None:
    """Content of the last box of a text, without blanks around it; None when there is no answer in it."""
    opened: list[int | None] = []  # per open brace: where the content of its box starts; None if it is no box
    last: tuple[int, int] | None = None
    for match in BOX_OR_BRACE.finditer(text):
        piece = match.group()
        if match.group(1):
            opened.append(match.end())
            last = None  # what was answered before is taken back, closed or not
        elif piece == "{":
            opened.append(None)
        elif piece == "}" and opened:
            start = opened.pop()
            if start is not None:
                last = (start, match.start())
    return (text[last[0] : last[1]].strip() or None) if last else None


def extract_answer(response: str) -> str | None:
    """Content of the last box in the part of the response that counts, or None."""
    text = final_text(response)
    return None if text is None else last_box(text)


class _Tokens:
    """The tokens of an answer between two ends that only move inwards, so that all trimming together is linear."""

    def __init__(self, text: str):
        self.tokens = [" " if token.isspace() else token for token in TOKEN.findall(text.translate(SAME))]
        self.start, self.end = 0, len(self.tokens)
        self.partner: dict[int, int] = {}  # of each matched brace
        opened = []
        for index, token in enumerate(self.tokens):
            if token == "{":
                opened.append(index)
            elif token == "}" and opened:
                other = opened.pop()
                self.partner[index], self.partner[other] = other, index

    def at(self, index: int) -> str:
        """The token there; empty outside the two ends."""
        return self.tokens[index] if self.start <= index < self.end else ""

    def body(self) -> str:
        return "".join(self.tokens[self.start : self.end])

    def trim(self) -> None:
        while self.at(self.start) in BLANKS:
            self.start += 1
        while self.at(self.end - 1) in BLANKS:
            self.end -= 1

    def settle(self) -> None:
        """Remove what may stand around a number without changing it, layer by layer."""
        self.trim()
        while self._unwrap() or self._drop_stop() or self._drop_unit():
            self.trim()

    def take(self, *wanted: str) -> str:
        """Remove and return the first token if it is a wanted one."""
        token = self.at(self.start)
        if token not in wanted:
            return ""
        self.start += 1
        self.trim()
        return token

    def drop_name(self) -> None:
        """Remove `x =`: one letter, Latin or Greek, with or without a subscript."""
        name, index = self.at(self.start), self.start + 1
        if not (name in GREEK or (len(name) == 1 and name.isascii() and name.isalpha())):
            return
        if self.at(index) == "_":
            index = self.partner.get(index + 1, index + 1) + 1
        while self.at(index) in BLANKS:
            index += 1
        if self.at(index) == "=":
            self.start = index + 1

    def _unwrap(self) -> bool:
        first, last = self.at(self.start), self.at(self.end - 1)
        if (first, last) in MATH_MODE and self.end - self.start > 1:
            self.start, self.end = self.start + 1, self.end - 1
            return True
        brace = self.start
        if first in STYLES:
            brace += 2 if self.at(brace + 1) == " " else 1
        if last == "}" and self.partner.get(self.end - 1) == brace:
            self.start, self.end = brace + 1, self.end - 1
            return True
        return False

    def _drop_stop(self) -> bool:
        if self.at(self.end - 1) != "." or self.at(self.end - 2) in ("", "."):
            return False
        self.end -= 1
        return True

    def _drop_unit(self) -> bool:
        end = self._power_start()
        start = self._unit_start(end)
        if start is None:
            return False
        # 5\text{ cm}^2 is 5, but 5\text{}^2 is a square.
        if end != self.end and not any(self.tokens[index].isalpha() for index in range(start, end)):
            return False
        self.end = start
        return True

    def _power_start(self) -> int:
        """Where the exponent at the end starts; the end when there is none."""
        last = self.at(self.end - 1)
        if last in ("\u00b2", "\u00b3"):
            return self.end - 1
        if last in POWERS and self.at(self.end - 2) == "^":
            return self.end - 2
        brace = self._short_group(self.end, POWERS)
        return brace - 1 if brace is not None and self.at(brace - 1) == "^" else self.end

    def _short_group(self, end: int, contents: set[str]) -> int | None:
        """Index of the `{` of a group that ends at `end` and holds one of `contents`."""
        brace = self.partner.get(end - 1, end) if self.at(end - 1) == "}" else end
        content = "".join(self.tokens[brace + 1 : end - 1]).strip() if end - brace <= 6 else ""
        return brace if content in contents else None

    def _unit_start(self, end: int) -> int | None:
        """Where the unit that ends at `end` starts; None when there is none."""
        last = self.at(end - 1)
        if last in ("%", "\\%", "\u00b0", "\\degree"):
            return end - 2 if self.at(end - 2) == "^" else end - 1
        if last == "\\circ":
            return end - 2 if self.at(end - 2) == "^" else None
        if last == "}":
            return self._text_start(end)
        if last == ")":
            return self._remark_start(end)
        if last in UNITS:
            before = end - 2 if self.at(end - 2) != " " else end - 3
            return before if self.at(before) in ("square", "cubic") else end - 1
        return None

    def _text_start(self, end: int) -> int | None:
        """Start of `^{\\circ}` or of `\\text{ cm}` when one of them ends at `end`."""
        brace = self._short_group(end, DEGREES)
        if brace is not None and self.at(brace - 1) == "^":
            return brace - 1
        brace = self.partner.get(end - 1, self.start)
        style = brace - 2 if self.at(brace - 1) == " " else brace - 1
        symbols = self.at(style) == "\\mathrm"
        return style if self.at(style) in TEXT_STYLES and self._is_unit(brace + 1, end - 1, symbols) else None

    def _remark_start(self, end: int) -> int | None:
        """Start of ` (apples)`. It takes a blank and a word, because 5(x) and 5(ab) are products."""
        index = end - 2
        while self.at(index) not in ("(", ")", ""):
            index -= 1
        word = self.at(index + 1)
        if self.at(index) != "(" or self.at(index - 1) not in BLANKS or not (len(word) > 2 or word in UNITS):
            return None
        return index if self._is_unit(index + 1, end - 1) else None

    def _is_unit(self, start: int, end: int, symbols: bool = False) -> bool:
        """Whether the text there says what is counted, and nothing about how many; as symbols, listed units alone."""
        words = [t for t in self.tokens[start:end] if t not in BLANKS and t not in MARKS_IN_TEXT]
        if symbols or (len(words) == 1 and len(words[0]) <= 2):
            return all(w in UNIT_LETTERS if len(w) == 1 else w.lower() in SHORT_UNITS for w in words)
        return all(w.isascii() and w.isalpha() and w.lower() not in NO_UNITS for w in words)


def _integer(text: str) -> int | None:
    """The integer in an optional sign and ASCII digits; None beyond MAX_DIGITS."""
    digits = text.lstrip("+-").lstrip("0") or "0"
    if len(digits) > MAX_DIGITS:
        return None
    return -int(digits) if text.startswith("-") else int(digits)


def _magnitude(text: str) -> Fraction | None:
    """A number without sign, unit or anything else around it."""
    if match := GROUPED.fullmatch(text) or DECIMAL.fullmatch(text):
        whole, part = NO_DIGIT.sub("", match["whole"]), match["part"] or ""
        value = _integer(whole + part.rstrip("0")) if whole or part else None
        decimals = len(part.rstrip("0"))
        return None if value is None or decimals > MAX_DIGITS else Fraction(value, 10**decimals)
    if match := SLASHED.fullmatch(text) or STACKED.fullmatch(text):
        top, bottom = (_integer(group) for group in match.groups() if group is not None)
        return Fraction(top, bottom) if top is not None and bottom else None
    return None


def read_number(text: str) -> Fraction | None:
    r"""The one number that an answer is, exactly; None when it is anything else. Never raises.

    Read are ASCII digits, with a sign (also U+2212), leading zeros, decimals, well-formed thousands groups
    (`1,234`, `1{,}234`, `1\,234`, `1,\!234`) and fractions of two integers (`10/2`, `\frac{10}{2}`, `\frac82`);
    before them `x =` and `\$`; behind them a full stop, a percent or degree sign, a unit, `\text{...}` or
    ` (apples)` that says what is counted; around them math mode, braces and styles such as `\mathbf{...}`.
    Everything else is no number: lists, expressions, powers, mixed numbers, `1e3`, other bases, other digits.
    """
    tokens = _Tokens(text)
    tokens.settle()
    tokens.drop_name()
    tokens.settle()
    sign = tokens.take("+", "-")
    tokens.settle()
    if tokens.take("\\$", "$") and not sign:
        sign = tokens.take("+", "-")
    tokens.settle()
    value = _magnitude(tokens.body())
    return -value if value is not None and sign == "-" else value


def parse_integer(text: str) -> int | None:
    """The integer that an answer is, or None. What filters use to tell whether a problem has an integer answer."""
    value = read_number(text)
    return int(value) if value is not None and value.denominator == 1 else None


def parse_label(label: int | str) -> int:
    """The integer of a label: an int, or a string of ASCII digits with an optional sign.

    Raises:
        ValueError: anything else. A label is ground truth, so nothing is read into it.
    """
    if isinstance(label, int) and not isinstance(label, bool):
        if abs(label) >= 10**MAX_DIGITS:  # repr() of it may raise
            raise ValueError(f"label has more than {MAX_DIGITS} digits; the grader compares no number that long")
        return label
    value = _integer(label.strip()) if isinstance(label, str) and LABEL.fullmatch(label.strip()) else None
    if value is None:
        raise ValueError(f"label {label!r:.100} is not an integer of at most {MAX_DIGITS} digits")
    return value


def is_correct(answer: str | None, label: int | str) -> bool:
    """Whether an extracted answer is the label's integer. No answer is never correct.

    Raises:
        ValueError: the label is not an integer.
    """
    wanted = parse_label(label)
    return answer is not None and read_number(answer) == wanted


def grade(response: str, label: int | str) -> Grade:
    """Grade one response.

    Raises:
        ValueError: the label is not an integer. No response raises.
    """
    wanted = parse_label(label)
    text = final_text(response)
    answer = last_box(text) if text is not None else None
    value = read_number(answer) if answer is not None else None
    return Grade(answer, value, value == wanted, text is not None)


def reward_func(queries: list[str], prompts: list[str], labels: list[int | str]) -> dict[str, Any]:
    """OpenRLHF's custom reward function.

    Args:
        queries: prompt and response as one text, one a sample.
        prompts: the prompts alone; what is left of a query without its prompt is the response.
        labels: the integers.

    Returns:
        rewards and scores, one float a sample, and extra_logs with the same keys for every sample.

    Raises:
        ValueError: a query does not start with its prompt (the box in the prompt's instruction could be taken for
            an answer), a label is not an integer, or the lists differ in length.
    """
    grades = []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        if not query.startswith(prompt):
            raise ValueError(f"a query does not start with its prompt: {query[:80]!r} against {prompt[:80]!r}")
        grades.append(grade(query[len(prompt) :], label))
    rewards = [1.0 if g.correct else 0.0 for g in grades]
    logs = {
        "answer_found": [1.0 if g.answer is not None else 0.0 for g in grades],
        "final_channel": [1.0 if g.final_channel else 0.0 for g in grades],
    }
    return {"rewards": rewards, "scores": list(rewards), "extra_logs": logs}


def read_rows(path: Path, counts: Counter) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL file with their line numbers. A last line without its line break that is no JSON was torn
    by a crash: it is counted and passed over. Blank lines are no rows.

    Raises:
        ValueError: naming file and line of anything else that is no object with `response` and `label`.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    counts["torn last line"] += 1
                    return
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(row.get("response"), str) or "label" not in row:
                raise ValueError(f"{path}, line {number}: needs the fields response (a string) and label")
            yield number, row


def stored_grade(row: dict[str, Any]) -> bool | None:
    """The grade that a row carries: `correct` (true or false), else `reward` (1 or 0), else None.

    Raises:
        ValueError: the field holds anything else, so that right and wrong cannot be told.
    """
    for field in ("correct", "reward"):
        value = row.get(field)
        if value is not None:
            if value not in (0, 1):
                raise ValueError(f"{field} is {value!a:.100}, which is neither right (1, true) nor wrong (0, false)")
            return bool(value)
    return None


def grade_file(path: Path) -> tuple[Counter, list[str]]:
    """Grade every row of a JSONL file.

    Returns:
        Counts, and one line for every row whose grade is not the stored one.

    Raises:
        ValueError: naming file and line of a row that cannot be graded.
    """
    counts: Counter = Counter()
    flips = []
    for number, row in read_rows(path, counts):
        try:
            result, stored = grade(row["response"], row["label"]), stored_grade(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        counts["rows"] += 1
        # `correct` is false for a response that was cut off, `reward` is not (gptoss_rl/run/rollouts.py).
        right = result.correct and not ("correct" in row and row.get("finish_reason") == "length")
        counts["right"] += right
        counts["no final message"] += not result.final_channel
        counts["no answer"] += result.answer is None
        counts["not a number"] += result.answer is not None and result.value is None
        counts["stored grades"] += stored is not None
        if stored is not None and stored != right:
            now = "wrong, now right" if right else "right, now wrong"
            counts[f"stored {now}"] += 1
            answer = None if result.answer is None else result.answer[:100]
            flips.append(f"line {number}: stored {now}: answer {answer!a}, label {row['label']!a}")
    return counts, flips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser("grade", help="grade the responses of a JSONL file; show flips against stored grades")
    again.add_argument("file", type=Path, help="rows with response and label, and correct or reward if graded before")
    args = parser.parse_args()
    try:
        counts, flips = grade_file(args.file)
    except (OSError, ValueError) as error:
        sys.exit(f"reward_func_em: {error}")
    names = ("rows", "right", "no final message", "no answer", "not a number", "torn last line", "stored grades")
    for name in (*names, "stored wrong, now right", "stored right, now wrong"):
        print(f"{name:24s} {counts[name]:8d}")
    for flip in flips:
        print(flip)


if __name__ == "__main__":
    main()
