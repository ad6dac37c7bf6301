"""Which rows of NuminaMath-1.5 become training problems, and why the others do not.

Every row gets one verdict: the first rule that it breaks, or none. So counts by reason add up to the rows read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gptoss_rl.data.files import DataError, read_lines
from gptoss_rl.prompts import HARMONY_MARKERS
from reward_func_em import last_box, parse_integer

COLUMNS = (
    "problem", "solution", "answer", "problem_type", "question_type", "problem_is_valid", "solution_is_valid", "source",
    "synthetic",
)  # fmt: skip
BATCH_ROWS = 65_536
MIN_WORDS, MIN_CHARACTERS, MAX_CHARACTERS = 2, 15, 4_000
VERBS = (
    "find|compute|determine|calculate|evaluate|solve|what|how|which|who|when|where|give|express|simplify|count|state|write|"
    "name|estimate|round|convert|factor|describe|prove|show|expand|identify|decide|add|subtract|multiply|divide|enter|choose"
)
# A question asks, commands or leaves something open; text that does neither is a heading or a fragment.
ASKS = (
    rf"\?|(?i)\b(?:{VERBS}|fill|number of|value of|sum of|maximum|minimum|largest|smallest|equals?|is equal to|"
    r"closest to)\b|_{2,}|(?:\\_){2,}|\\qquad|"
    r"(?:\bis|\bare|=|:)[\s$.:]*$"
)
FOREIGN = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Cyrillic}\p{Arabic}]{2,}"
OPTIONS = (
    r"\(A\)[\s\S]{1,400}\(B\)[\s\S]{1,400}\(C\)|\\textbf\{\(A\)|"
    r"(?:^|\s)A[.)]\s[\s\S]{1,400}?\sB[.)]\s[\s\S]{1,400}?\sC[.)]\s"
)
# A second part counts when it asks something: (a) and (b) also number the conditions of one question.
SECOND = r"(?:\(2\)|\(b\)|\(ii\)|\n\s*2[.)]|\n\s*b[.)])"
PARTS = rf"{SECOND}[\s$]*(?i:(?:if|when|given|suppose|for|let|in)\b[^?]{{0,200}}?\b)?(?i:{VERBS})\b|\?[\s\S]*\?"
BLANKS = r"(?:_{2,}|(?:\\_){2,})[\s\S]*[^_\\\s][\s\S]*(?:_{2,}|(?:\\_){2,})"
STATED = re.compile(r"(?i)\banswer\s*(?:is|:|=)\s*\$?(-?[0-9]+)\b")
# Words by which a problem asks for several numbers.
ASKS_LIST = re.compile(
    r"(?i)separated by|ordered (?:pair|triple)|\blist\b|\bfind all\b|\ball (?:possible |real |positive |integer )*(?:values|"
    r"solutions|integers|numbers|primes)|\bsolutions\b|\broots\b|coordinates|respectively|"
    r"(?:ascending|increasing|descending) order"
)


@dataclass
class Survivors:
    """Rows that no rule of a single row rejected."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    read: int = 0

    def reject(self, reason: str, count: int = 1) -> None:
        if count:
            self.reasons[reason] = self.reasons.get(reason, 0) + count


@lru_cache(maxsize=1 << 20)
def integer_of(answer: str) -> int | None:
    """The grader's reading of an answer. Most answers repeat."""
    return parse_integer(answer)


def batches(path: Path) -> Iterator[pl.DataFrame]:
    """The file, some rows at a time.

    Raises:
        DataError: it is missing, damaged or empty, or a column is missing or has another type.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; get it with: hf download AI-MO/NuminaMath-1.5 --repo-type dataset --revision SHA")
    if path.suffix in (".jsonl", ".gz"):
        yield checked(pl.from_dicts(read_lines(path), schema_overrides=SCHEMA, infer_schema_length=None), path)
        return
    try:
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                for batch in pa.ipc.open_stream(source):
                    yield checked(pl.from_arrow(batch), path)
            return
        file = pq.ParquetFile(path)
        present = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=present):
            yield checked(pl.from_arrow(batch), path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged or no parquet or arrow file ({error}); fetch it again") from error


SCHEMA = {name: pl.Boolean if name == "synthetic" else pl.String for name in COLUMNS}


def checked(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise DataError(f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: not NuminaMath-1.5's schema")
    wrong = [f"{n} is {frame[n].dtype}" for n in COLUMNS if frame[n].dtype not in (SCHEMA[n], pl.Null)]
    if wrong:
        raise DataError(f"{path}: {', '.join(wrong)}; not NuminaMath-1.5's schema")
    return frame.select(COLUMNS)


def column_rules(exclude_sources: list[str], keep_synthetic: bool) -> list[tuple[str, pl.Expr]]:
    """(reason, expression that is true for rows to reject), in order; null counts as true."""
    text = pl.col("problem")
    return [
        ("not a word problem", pl.col("question_type") != "math-word-problem"),
        ("problem not valid", pl.col("problem_is_valid") != "Yes"),
        ("solution not valid", pl.col("solution_is_valid") != "Yes"),
        ("synthetic", pl.col("synthetic") & (not keep_synthetic)),
        ("excluded source", pl.col("source").is_in(exclude_sources)),
        ("no answer", pl.col("answer").str.strip_chars().is_in(["", "notfound", "proof"])),
        ("no digit in the answer", ~pl.col("answer").str.contains(r"[0-9]")),
        ("not in English", text.str.contains(FOREIGN)),
        ("too short for a question", (text.str.count_matches(r"\S+") < MIN_WORDS) | (text.str.len_chars() < MIN_CHARACTERS)),
        ("too long", text.str.len_chars() > MAX_CHARACTERS),
        ("asks nothing", ~text.str.contains(ASKS)),
        ("multiple choice", text.str.contains(OPTIONS)),
        ("several questions", text.str.contains(PARTS) | text.str.contains(BLANKS)),
        ("control marker in the problem", text.str.contains_any(list(HARMONY_MARKERS))),
    ]


def judge(frame: pl.DataFrame, rules: list[tuple[str, pl.Expr]]) -> pl.DataFrame:
    """The frame with a column `reason`, null where no column rule rejects."""
    verdict = pl.coalesce([pl.when(broken.fill_null(True)).then(pl.lit(reason)) for reason, broken in rules])
    return frame.with_columns(verdict.alias("reason"))


def answer_verdict(answer: str, problem: str, solution: str) -> tuple[int | None, str | None]:
    """(label, None), or (None, reason)."""
    label = integer_of(answer)
    if label is None:
        return None, "answer is no integer"
    if is_leaked(label, problem):
        return None, "answer in the problem"
    box = last_box(solution or "")
    if box is not None:
        return (label, None) if integer_of(box) == label else (None, "boxed answer of the solution disagrees")
    if "," in answer and may_be_list(answer, problem, solution or ""):
        return None, "answer may be a list"
    return label, None


def is_leaked(label: int, problem: str) -> bool:
    """Whether the problem states its own answer. A box around something else is notation."""
    box = last_box(problem)
    stated = {int(match) for match in STATED.findall(problem)}
    return label in stated or (box is not None and integer_of(box) == label)


def may_be_list(answer: str, problem: str, solution: str) -> bool:
    """Whether a thousands group such as 110,880 could be two numbers after all."""
    groups = re.findall(r"[0-9]+", answer)
    apart = r"\s*(?:,\s+|;|and|or|\\text\{\s*(?:and|or)\s*\})\s*(?:[a-z]\s*=\s*)?".join(groups)
    return bool(ASKS_LIST.search(problem) or re.search(apart, solution))


def survivors(path: Path, exclude_sources: list[str], keep_synthetic: bool, progress: Any = None) -> Survivors:
    """Apply every rule that looks at one row alone.

    Raises:
        DataError: the file cannot be read or holds no rows.
    """
    result, rules = Survivors(), column_rules(exclude_sources, keep_synthetic)
    for frame in batches(path):
        result.read += len(frame)
        judged = judge(frame, rules)
        for reason, count in judged.filter(pl.col("reason").is_not_null()).group_by("reason").len().iter_rows():
            result.reject(reason, count)
        for row in judged.filter(pl.col("reason").is_null()).iter_rows(named=True):
            label, reason = answer_verdict(row["answer"], row["problem"], row["solution"])
            if reason is not None:
                result.reject(reason)
            else:
                kept = {name: row[name] for name in ("problem", "source", "problem_type", "answer")}
                result.rows.append({**kept, "label": label})
        if progress is not None:
            progress.update(len(frame))
    if not result.read:
        raise DataError(f"{path} is empty")
    return result
