"""Evaluations outside a run: one continuous batch through the engine that training uses, a record a problem, resumable.

Records are those of the in-training evaluation (gptoss_rl/records.py); several samples of a problem are several lines. The
denominator is fixed: a response that was cut off, has no answer or cannot be read counts as wrong, and is counted apart.

`prepare` finds everything that can be wrong without an engine, so that a command prepares all before it evaluates the first.
"""

from gptoss_rl.evaluation.arguments import add_decoding
from gptoss_rl.evaluation.records import (
    Evaluation,
    check_header,
    header_path,
    identity,
    load_evaluation,
    refuse_different,
    summarise,
)
from gptoss_rl.evaluation.running import Job, evaluate, prepare, record
from gptoss_rl.evaluation.serving import AdapterFiles, Served, start
from gptoss_rl.evaluation.sets import Decoding, EvaluationError, Problem, read_problems, read_rows, read_sets

__all__ = [
    "AdapterFiles", "Decoding", "Evaluation", "EvaluationError", "Job", "Problem", "Served", "add_decoding", "check_header",
    "evaluate",
    "header_path", "identity", "load_evaluation", "prepare", "read_problems", "read_rows", "read_sets", "record",
    "refuse_different", "start", "summarise",
]  # fmt: skip
