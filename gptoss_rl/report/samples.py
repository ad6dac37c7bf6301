"""The same held-out problems before and after training, with the answer in sight."""

import html

from gptoss_rl.records import Record, by_problem, by_step, shares
from gptoss_rl.watch.run_view import RunView, problem_text

SAMPLES_SHOWN = 6
EXCERPT = 400  # characters of a response around its answer; the rest is folded away


def samples_section(name: str, view: RunView) -> str:
    """Problems whose verdict changed come first."""
    records = view.evaluation_records()
    if not records:
        return ""
    steps = by_step(records)
    first, last = min(steps), max(steps)
    before, after = (by_problem(steps[step]) for step in (first, last))
    shared = [i for i in before if i in after]
    changed = [i for i in shared if shares(before[i]) != shares(after[i])]
    chosen = (changed + [i for i in shared if i not in set(changed)])[:SAMPLES_SHOWN]
    pairs = "".join(pair([before[i][-1]] if first == last else [before[i][-1], after[i][-1]]) for i in chosen)
    when = f"at step {first}" if first == last else f"at step {first} and step {last}"
    return f"<h2>Held-out problems of {html.escape(name)} {when}</h2>{pairs}"


def pair(records: list[Record]) -> str:
    problem, label = html.escape(problem_text(records[0])), html.escape(str(records[0]["label"]))
    cells = "".join(sample_cell(r) for r in records)
    return f'<h4>{problem} <small>label {label}</small></h4><div class="pair">{cells}</div>'


def sample_cell(record: Record) -> str:
    """Verdict and the part of the response with the answer in it; a long one can be unfolded whole."""
    text, verdict = record["response"], "right" if record["correct"] else "wrong"
    excerpt = marked(text, *answer_span(text, record.get("answer")))
    shown = f'<b class="{verdict}">step {record["step"]}: {verdict}</b><pre>{excerpt}</pre>'
    if len(text) > EXCERPT:
        whole = f'<pre class="whole">{html.escape(text)}</pre>'
        shown += f"<details><summary>Whole response, {len(text):,} characters</summary>{whole}</details>"
    return f"<div>{shown}</div>"


def answer_span(text: str, answer: str | None) -> tuple[int, int]:
    """Where the answer stands last, in its box if it has one; the empty end when it does not stand there as it was read."""
    if answer:
        boxed = text.rfind(f"\\boxed{{{answer}}}")
        start = boxed + len("\\boxed{") if boxed >= 0 else text.rfind(answer)
        if start >= 0:
            return start, start + len(answer)
    return len(text), len(text)


def marked(text: str, start: int, end: int) -> str:
    """The last `EXCERPT` characters as HTML, or those around the answer if it stands before them; [start, end) is marked."""
    last = len(text) if start >= len(text) - EXCERPT else min(len(text), end + EXCERPT // 4)
    first = max(0, min(last - EXCERPT, start))
    before, answer, after = (html.escape(part) for part in (text[first:start], text[start:end], text[end:last]))
    answer = f"<mark>{answer}</mark>" if answer else ""
    return f"{'… ' if first else ''}{before}{answer}{after}{' …' if last < len(text) else ''}"
