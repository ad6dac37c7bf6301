"""The grader: pure exact match of the last boxed answer with an integer label.

reward = 1.0 if extracted_answer == ground_truth else 0.0

The one place where answers are read: training (OpenRLHF loads this file by path), every filter and every
evaluation use it. It imports the standard library alone, never raises on a response, and takes linear time.

    python reward_func_em.py grade runs/NAME/eval.jsonl      # grade again, and show what flipped

Rules. In a Harmony response only the last final-channel message counts; a response that was cut off in the analysis has
no answer. Otherwise the whole response counts. The answer is the content of the last `\\boxed{...}` with balanced
braces; an unclosed or empty one is no answer, and there is no fallback to the last number of the text.
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

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
FINAL_HEADER = "<|channel|>final"
HARMONY = ("<|channel|>", "<|message|>")
END_OF_MESSAGE = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")
# No integer that a problem asks for is longer; it also keeps int() far from Python's 4,300-digit limit.
MAX_ANSWER = 300

# Spellings of the thousands separator. A plain space is none: "5 6" is two answers.
SEPARATOR = r"(?:\{,\}|,\\!|,|\\,|\\!)"
GROUPED = re.compile(rf"[1-9][0-9]{{0,2}}({SEPARATOR})[0-9]{{3}}(?:\1[0-9]{{3}})*")
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
SLASHED = re.compile(r"(-?[0-9]+)/(-?[0-9]+)")
STACKED = re.compile(r"\\[dtc]?frac(?:\{([+-]?[0-9]+)\}|([0-9]))(?:\{([+-]?[0-9]+)\}|([0-9]))")
NAME = re.compile(r"[A-Za-z](?:_\{?[A-Za-z0-9]+\}?)?\s*=\s*")
STYLE = r"(?:text|textbf|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|rm|bf)"
WRAPPED = re.compile(rf"\\{STYLE}\s*\{{([^{{}}]*)\}}")
# Units without \text, whole words alone: "5x" and "5i" are not 5.
WORDS = (
    "units?|degrees?|percent|dollars?|cents?|cm|mm|km|kg|inch(?:es)?|feet|foot|ft|yards?|miles?|met(?:er|re)s?|"
    "seconds?|minutes?|hours?|days?|weeks?|months?|years?|grams?|lit(?:er|re)s?|points?|people|students?|ways?"
)
UNIT = re.compile(
    rf"(?:\\?%|\^\s*\{{?\s*\\(?:circ|degree)\s*\}}?|\\(?:circ|degree)|\u00b0|\\{STYLE}\s*\{{[^{{}}]*\}}(?:\^\{{?[23]\}}?)?|"
    rf"(?<![A-Za-z\\])(?:square|cubic)?\s*(?:{WORDS})(?:\^\{{?[23]\}}?)?)$"
)
BLANK = re.compile(r"(?:\s|~|\u00a0|\u2009|\u202f|\\[;: ]|\\q?quad(?![A-Za-z]))+")
LABEL = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Grade:
    """What became of one response."""

    answer: str | None  # content of the last box, as written
    value: Fraction | None  # the number it was read as; None when it is no single number
    correct: bool
    final_channel: bool  # a final message was reached, or the response is not Harmony


def final_text(response: str) -> str | None:
    """The part of a response that counts; None when a Harmony response never reached its final channel."""
    if not any(marker in response for marker in HARMONY):
        return response
    header = response.rfind(FINAL_HEADER)
    if header < 0:
        return None
    start = response.find("<|message|>", header)
    # Between the header and its message stands nothing but a content type.
    if start < 0 or "<|channel|>" in response[header + 1 : start] or "<|end|>" in response[header:start]:
        return None
    start += len("<|message|>")
    ends = [end for marker in END_OF_MESSAGE if (end := response.find(marker, start)) >= 0]
    return response[start : min(ends, default=len(response))]


def _last_box(text: str) -> re.Match | None:
    """The last `\\boxed` of a text, by one scan from its end for each of the two spellings."""
    for start in sorted((text.rfind("\\boxed"), text.rfind("\\fbox")), reverse=True):
        if start >= 0 and (match := BOX.match(text, start)):
            return match
    return None


BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def extract_answer(response: str) -> str | None:
    """Content of the last box in the part of the response that counts, or None.

    A last box that is unclosed, empty or without braces is no answer, even when an earlier one is complete: the
    response was cut off while it was answering.
    """
    text = final_text(response)
    box = _last_box(text) if text is not None else None
    if box is None or not text.startswith("{", box.end()):
        return None
    depth = 0
    for match in BRACE.finditer(text, box.end()):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            depth -= 1
            if depth == 0:
                return text[box.end() + 1 : match.start()].strip() or None
    return None


def _trim(text: str) -> str:
    """Take away what may stand around a number without changing it: blanks, math mode, a name, units, a full stop."""
    text = text.replace("\u2212", "-").strip()
    for _ in range(8):  # each of these may hide another; eight is more than any answer needs
        before = text
        text = BLANK.sub(" ", text).strip()
        text = text.removeprefix("\\displaystyle")
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        if len(text) > 1 and text.startswith("$") and text.endswith("$"):
            text = text[1:-1]
        if text.startswith("\\(") and text.endswith("\\)"):
            text = text[2:-2]
        if wrapped := WRAPPED.fullmatch(text):
            text = wrapped.group(1)
        if text.startswith("{") and text.endswith("}") and "{" not in text[1:]:
            text = text[1:-1]
        text = NAME.sub("", text, count=1) if NAME.match(text) else text
        text = UNIT.sub("", text).rstrip() if not UNIT.fullmatch(text) else text
        text = re.sub(r"\\,$|\\!$", "", text)
        if text == before:
            break
    return text


def read_number(text: str) -> Fraction | None:
    """The one number that an answer is, exactly; None when it is anything else.

    Reads signs, well-formed thousands groups, decimals, simple fractions, a leading dollar sign or `x =`, leading
    zeros, and a trailing unit, degree or percent sign. Digits are ASCII. Never raises.
    """
    if len(text) > MAX_ANSWER:
        return None
    text = _trim(text)
    sign = 1
    if match := re.match(r"([+-])\s*", text):
        sign, text = (-1 if match.group(1) == "-" else 1), text[match.end() :]
    text = re.sub(r"^\\?\$\s*", "", text)
    if match := re.match(r"-\s*(?=[0-9.])", text) if sign == 1 else None:  # \\$-5
        sign, text = -1, text[match.end() :]
    if GROUPED.fullmatch(text):
        return sign * Fraction(re.sub(r"[^0-9]", "", text))
    if NUMBER.fullmatch(text):
        return sign * Fraction(text.removesuffix("."))
    if match := SLASHED.fullmatch(text.replace(" ", "")) or STACKED.fullmatch(text.replace(" ", "")):
        top, bottom = (int(group) for group in match.groups() if group is not None)
        return sign * Fraction(top, bottom) if bottom else None
    return None


def parse_integer(text: str) -> int | None:
    """The integer that an answer is, or None. What filters use to decide whether a problem has an integer answer."""
    value = read_number(text)
    return int(value) if value is not None and value.denominator == 1 else None


def parse_label(label: int | str) -> int:
    """The integer of a label: an int, or a string of digits with an optional sign.

    Raises:
        ValueError: anything else. A label is ground truth, so nothing is read into it.
    """
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if isinstance(label, str) and LABEL.fullmatch(label.strip()) and len(label) <= MAX_ANSWER:
        return int(label)
    raise ValueError(f"label {label!r} is not an integer")


def grade(response: str, label: int | str) -> Grade:
    """Grade one response.

    Raises:
        ValueError: the label is not an integer. No response raises.
    """
    wanted = parse_label(label)
    answer = extract_answer(response)
    value = read_number(answer) if answer is not None else None
    return Grade(answer, value, value == wanted, final_text(response) is not None)


def reward_func(queries: list[str], prompts: list[str], labels: list[int | str]) -> dict[str, Any]:
    """OpenRLHF's custom reward function: one float a query.

    Args:
        queries: prompt and response as one text.

    Raises:
        ValueError: a query does not start with its prompt (the instruction's own box could be taken for the answer), or a
            label is not an integer.
    """
    grades = []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        if not query.startswith(prompt):
            raise ValueError(f"a query does not start with its prompt: {query[:80]!r}")
        grades.append(grade(query[len(prompt) :], label))
    rewards = [1.0 if g.correct else 0.0 for g in grades]
    logs = {
        "answer_found": [1.0 if g.answer is not None else 0.0 for g in grades],
        "final_channel": [1.0 if g.final_channel else 0.0 for g in grades],
    }
    return {"rewards": rewards, "scores": list(rewards), "extra_logs": logs}


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines of a JSONL file with their numbers.

    Raises:
        ValueError: naming file and line of a row that is no object with `response` and `label`.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
            if not isinstance(row, dict) or "response" not in row or "label" not in row:
                raise ValueError(f"{path}, line {number}: needs the fields response and label")
            yield number, row


def grade_file(path: Path) -> tuple[Counter, list[str]]:
    """Grade every row of a file.

    A stored grade is looked for in `correct` (true or false), else in `reward` (above 0 is right).

    Returns:
        Counts, and one line for every row whose grade is not the stored one.
    """
    counts: Counter = Counter()
    flips = []
    for number, row in read_rows(path):
        try:
            result = grade(row["response"], row["label"])
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        counts["rows"] += 1
        counts["right"] += result.correct
        counts["no answer"] += result.answer is None
        counts["not a number"] += result.answer is not None and result.value is None
        stored = row.get("correct", row["reward"] > 0 if "reward" in row else None)
        if stored is not None:
            counts["stored grades"] += 1
            if bool(stored) != result.correct:
                counts["flips"] += 1
                now = "right" if result.correct else "wrong"
                flips.append(f"line {number}: now {now}, answer {result.answer!r}, label {row['label']!r}")
    return counts, flips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser("grade", help="grade the responses of a JSONL file; show flips against stored grades")
    again.add_argument("file", type=Path, help="rows with response and label, optionally correct or reward")
    args = parser.parse_args()
    try:
        counts, flips = grade_file(args.file)
    except (OSError, ValueError) as error:
        sys.exit(f"reward_func_em: {error}")
    for name in ("rows", "right", "no answer", "not a number", "stored grades", "flips"):
        print(f"{name:14s} {counts[name]:8d}")
    print("\n".join(flips), end="\n" if flips else "")


if __name__ == "__main__":
    main()
