"""Which rows of NuminaMath-1.5 become training problems, and why the others do not.

Every row gets one verdict: the first rule that it breaks, or none. So counts by reason add up to the rows read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gptoss_rl.data.files import DataError, iter_lines
from gptoss_rl.data.patterns import (
    ANY_OF_THEM,
    ASIDE,
    ASKS,
    ASKS_LIST,
    ASKS_NUMBER,
    ASKS_ONE,
    BARE_COMMA,
    BLANKS,
    CASES,
    COMMANDS,
    CONCLUDES,
    CONDITIONS,
    DRAWN,
    EXPRESSION,
    FOREIGN,
    GUESS,
    HOW_MANY_OF,
    LISTED,
    NUMBER_TOO,
    NUMBERED,
    OF_THESE,
    ONE_OF_BOTH,
    OPTIONS,
    PARTS,
    PERCENT,
    PICTURE,
    POINTS_TO_PICTURE,
    PROOF,
    RESULT,
    SIGNS,
    STATED,
    TWO_ASKS,
    WHETHER,
)
from gptoss_rl.prompts import HARMONY_MARKERS
from reward_func_em import last_box, parse_integer

COLUMNS = (
    "problem", "solution", "answer", "problem_type", "question_type", "problem_is_valid", "solution_is_valid", "source",
    "synthetic",
)  # fmt: skip
BATCH_ROWS = 65_536
SUFFIXES = (".parquet", ".arrow", ".jsonl", ".jsonl.gz")
ARROW_MAGIC, STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
BOX = r"\boxed"
ASCII = {r"\b": r"(?-u:\b)", r"\w": "[A-Za-z0-9_]"}
MIN_WORDS, MIN_CHARACTERS, MAX_CHARACTERS = 2, 15, 4_000
RESULT_LENGTH = 80  # characters at the end in which a stated result is looked for
MOST_GROUPS = 6  # longer runs of three digits are lists: no problem here has an answer of 10^18


@dataclass
class Survivors:
    """Rows that no rule of a single row rejected."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)  # that some row has, rejected or not
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
        raise DataError(f"{path} is missing; get it with: python -m gptoss_rl.data fetch numinamath15")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: its name ends in none of {', '.join(SUFFIXES)}, by which the format is known")
    if path.suffix.lower() in (".jsonl", ".gz"):
        yield from json_batches(path)
        return
    try:
        for batch in parquet_batches(path) if path.suffix.lower() == ".parquet" else arrow_batches(path):
            batch.validate(full=True)  # an offset that points nowhere makes polars panic, or another row's text of this one's
            yield checked(pl.from_arrow(batch), path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is cut off or damaged, or no parquet or arrow file ({error}); fetch it again") from error


def parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(path)
    present = [name for name in COLUMNS if name in file.schema_arrow.names]
    yield from file.iter_batches(BATCH_ROWS, columns=present)


def arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow file in either of its formats: with an index at its end, or a stream (what `datasets` caches).

    Raises:
        pa.ArrowException: it is damaged; also for a stream that ends before the file does, or without its end marker.
    """
    with pa.memory_map(str(path)) as source:
        if source.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            return
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        end = source.tell()
        source.seek(max(0, source.size() - len(STREAM_END)))
        if end != source.size() or source.read() != STREAM_END:
            raise pa.ArrowInvalid(f"the stream ends at byte {end:,} of {source.size():,} or lacks its end marker")


def json_batches(path: Path) -> Iterator[pl.DataFrame]:
    """A JSONL file, some rows at a time; every value is checked, because polars would turn a number into text."""
    lines = iter_lines(path)
    while rows := list(islice(lines, BATCH_ROWS)):
        present = [name for name in COLUMNS if any(name in row for row in rows)]
        for name in present:
            wanted = bool if name == "synthetic" else str
            wrong = next((row[name] for row in rows if row.get(name) is not None and not isinstance(row[name], wanted)), None)
            if wrong is not None:
                raise DataError(f"{path}: {name} is {type(wrong).__name__} ({str(wrong)[:40]}); not NuminaMath-1.5's schema")
        columns = {name: [row.get(name) for row in rows] for name in present}
        yield checked(pl.DataFrame(columns, schema={name: SCHEMA[name] for name in present}), path)


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
    told = text.str.replace_all(ASIDE, " ")
    return [
        ("not a word problem", pl.col("question_type") != "math-word-problem"),
        ("problem not valid", pl.col("problem_is_valid") != "Yes"),
        ("solution not valid", pl.col("solution_is_valid") != "Yes"),
        ("synthetic", pl.col("synthetic") & (not keep_synthetic)),
        ("excluded source", pl.col("source").is_in(exclude_sources)),
        ("no answer", pl.col("answer").str.strip_chars().is_in(["", "notfound", "proof"])),
        ("no digit in the answer", ~pl.col("answer").str.contains(r"[0-9]")),
        ("not in English", has(text, FOREIGN)),
        ("too short for a question", (text.str.count_matches(r"\S+") < MIN_WORDS) | (text.str.len_chars() < MIN_CHARACTERS)),
        ("too long", text.str.len_chars() > MAX_CHARACTERS),
        ("asks nothing", ~(has(text, ASKS) | has(text, EXPRESSION))),
        ("multiple choice", has(text, OPTIONS)),
        (
            "several questions",
            has(told, PARTS)
            | has(told, LISTED)
            | has(text, BLANKS)
            | (has(told, NUMBERED) & ~has(text, HOW_MANY_OF))
            | (has(told, CASES) & ~has(text, CONDITIONS))
            | (has(told, TWO_ASKS) & ~has(text, ONE_OF_BOTH)),
        ),
        ("options are missing", has(text, OF_THESE)),
        ("several right answers", has(text, ANY_OF_THEM)),
        ("asks yes or no", has(text, WHETHER) & ~has(text, NUMBER_TOO)),
        ("asks for a proof", has(text, PROOF) & ~has(text, NUMBER_TOO)),
        ("asks for a guess", has(text, GUESS)),
        ("needs a picture", has(text, PICTURE) | (has(text, POINTS_TO_PICTURE) & ~has(text, DRAWN))),
        ("control marker in the problem", text.str.contains_any(list(HARMONY_MARKERS))),
    ]


def has(text: pl.Expr, pattern: str) -> pl.Expr:
    """Whether the pattern occurs. Word boundaries are ASCII's: for Unicode's, Rust leaves its fast engine."""
    return text.str.contains(re.sub(r"\\.", lambda escape: ASCII.get(escape[0], escape[0]), pattern))


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
    if box is not None and integer_of(box) != label:
        return None, "boxed answer of the solution disagrees"
    if boxed_list(problem, solution or ""):
        return None, "label is one of a list"
    if PERCENT.search(answer) and not PERCENT.search(problem):
        return None, "percentage that is not asked for"
    if may_be_list(answer, problem, solution or ""):
        return None, "answer may be a list"
    return label, None


def is_leaked(label: int, problem: str) -> bool:
    """Whether the problem states its own answer. A box around something else is notation."""
    box = last_box(problem)
    stated = {int(match) for match in STATED.findall(problem)}
    boxed = box is not None and integer_of(box) == label
    return label in stated or boxed or is_target(label, problem) or is_result(label, problem)


def is_result(label: int, problem: str) -> bool:
    """Whether the problem ends by stating the label as its result: it is a theorem, or its solution stands there too."""
    ends = RESULT.search(problem[-RESULT_LENGTH:])
    if ends is None or int(ends[1]) != label:
        return False
    return COMMANDS.search(problem) is None or CONCLUDES.search(problem) is not None


def is_target(label: int, problem: str) -> bool:
    """Whether signs are to be put between numbers so that the label comes out: "... so that the result equals 100"."""
    if SIGNS.search(problem) is None or ASKS_NUMBER.search(problem):
        return False
    return re.search(rf"(?i)\b(?:equals?|equal to|get|obtain|is|be|make)\s*\$?{label}(?![0-9]|[.,][0-9])", problem) is not None


def boxed_list(problem: str, solution: str) -> list[str]:
    """The boxes of a solution, in order, when the problem asks for several answers and each has its own box; else none.

    The last box alone is then one of the answers: "find all $k$" with "$k$ is $\\boxed{3}$ or $\\boxed{5}$".
    """
    pieces = solution.split(BOX)[1:]
    if len(pieces) < 2 or ASKS_LIST.search(problem) is None:
        return []
    boxes = list(dict.fromkeys(filter(None, (last_box(BOX + piece) for piece in pieces))))
    return boxes if len({integer_of(box) or box for box in boxes}) > 1 else []


def may_be_list(answer: str, problem: str, solution: str) -> bool:
    """Whether a thousands group such as 110,880 could be two numbers after all.

    The grader reads it as one number, and so it reads a box with the same characters: only the number written without a bare
    comma, in the box or elsewhere in the solution, proves that it is one.
    """
    if BARE_COMMA.search(answer) is None:
        return False
    groups = re.findall(r"[0-9]+", answer)
    if any(group.startswith("0") for group in groups[1:]):  # no list holds 008
        return False
    box = last_box(solution)
    if box is not None and BARE_COMMA.search(box) is None:
        return False
    if re.search(rf"(?<![0-9,.]){''.join(groups)}(?![0-9])", solution):
        return False
    apart = r"\s*(?:,\s+|;|and|or|\\text\{\s*(?:and|or)\s*\})\s*(?:[a-z]\s*=\s*)?".join(groups)
    several = ASKS_LIST.search(problem) or re.search(apart, solution)
    return len(groups) > MOST_GROUPS or bool(several) or (len(groups) == 2 and ASKS_ONE.search(problem) is None)


def survivors(path: Path, exclude_sources: list[str], keep_synthetic: bool, progress: Any = None) -> Survivors:
    """Apply every rule that looks at one row alone.

    Raises:
        DataError: the file cannot be read or holds no rows.
    """
    result, rules = Survivors(), column_rules(exclude_sources, keep_synthetic)
    for frame in batches(path):
        result.read += len(frame)
        result.sources |= set(frame["source"].drop_nulls().unique())
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
