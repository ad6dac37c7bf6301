"""The report's tables: evaluations with their paired differences, the facts of a run, what every metric means."""

import html
from typing import Any

from gptoss_rl.flags import EVALUATION_FLAGS
from gptoss_rl.metrics import METRICS, STAMPS
from gptoss_rl.records import shares_by_step
from gptoss_rl.stats import paired, score, tier_label, tier_of
from gptoss_rl.watch.alerts import alerts
from gptoss_rl.watch.run_view import RunView, counted

EVALUATION_NOTE = (
    "<p><small>Differences are from the evaluation that a row names after “against”, problem by problem. In brackets "
    "95 % intervals: Wilson's, at the effective number of samples for several a problem; for differences at each end the wider "
    "of paired bootstrap and Agresti-Min. p "
    "is exact McNemar's for one sample a problem, that of a sign-flip permutation test for several; not corrected for looking "
    "at several steps. A tier states the standard error at a pass rate of 65 %; a sanity-only set ranks nothing.</small></p>"
)
HASH_DIGITS = 12  # of commits and patch stacks: enough to find them, short enough for a telephone
INCIDENT_CHARACTERS = 600
Shares = dict[str, float]  # problem id -> share of its samples that are right


def table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    """Cells are text and are escaped. `kind` is a class of style.css; a wide one can be scrolled, with the keyboard, too."""
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    return f'<div class="wide {kind}" tabindex="0"><table>{top}<tbody>{body}</tbody></table></div>'


def evaluation_table(runs: dict[str, RunView]) -> str:
    """Every evaluation against its run's first, and the last ones of runs against each other."""
    rows: list[list[str]] = []
    lasts: list[tuple[str, int, Shares]] = []
    for name, view in runs.items():
        results = shares_by_step(view.evaluation_records())
        first = min(results, default=0)
        for step in results:
            before, words = (None, "") if step == first else (results[first], f" against step {first}")
            rows.append([name, f"step {step}{words}", *compared(before, results[step], view.config().get("eval_dataset"))])
        if results:
            lasts.append((name, max(results), results[max(results)]))
    for name, step, last in lasts[1:]:
        other, other_step, other_last = lasts[0]
        configs = runs[other].config(), runs[name].config()
        cells = compared(other_last, last, configs[1].get("eval_dataset"), evaluated_differently(*configs))
        rows.append([name, f"step {step} against {other} step {other_step}", *cells])
    head = ["run", "evaluation", "pass@1", "difference in points", "gained / lost", "p", "n", "tier"]
    own = slice(0 if len(runs) > 1 else 1, None)  # one run needs no column for its name
    return table(head[own], [row[own] for row in rows], "figures") + EVALUATION_NOTE if rows else ""


def evaluated_differently(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Which flags of two runs make their evaluations incomparable, in words; empty when none does."""
    names = [name for name in (*EVALUATION_FLAGS, "prompt_fingerprint") if a.get(name) != b.get(name)]
    return ", ".join(f"{name} {b.get(name)} against {a.get(name)}" for name in names)


def compared(before: Shares | None, after: Shares, set_name: str | None, apart: str = "") -> list[str]:
    """Cells of an evaluation: its score and, against another one of the same problems, the paired difference.

    Args:
        set_name: file of the evaluation set, which decides on the tier; None when the run does not say.
        apart: why the two cannot be compared, if they cannot.
    """
    own = score(list(after.values()))
    rate, size = f"{own.mean:.1%} ({own.low:.1%} to {own.high:.1%})", [str(own.n), tier_label(own.n, set_name)]
    if before is None:
        return [rate, "", "", "", *size]
    if apart:
        return [rate, f"not compared: {apart}", "", "", *size]
    if not tier_of(own.n, set_name).ranks_models:
        return [rate, "not compared: too few problems", "", "", *size]
    if set(before) != set(after):
        return [rate, "not the same problems: not compared", "", "", *size]
    found = paired(before, after)
    difference = f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return [rate, difference, f"{found.gained} / {found.lost}", f"{found.p_value:.2g}", *size]


def run_facts(name: str, view: RunView) -> str:
    """State, gates, incidents, environment and command of one run."""
    state = view.state()
    wrong = alerts(view.steps, state, view.config(), view.failed_sync())
    incidents = [*wrong, *view.resumptions(), *view.strange_lines(), *view.messages(10)]
    environment = view.read_json("environment.json")
    versions = ", ".join(f"{package} {version}" for package, version in environment.get("versions", {}).items())
    facts = [
        ["state", f"{state}, step {view.steps[-1]['step'] if view.steps else 0}"],
        ["canary", canary_words(view.canary())],
        ["syncs", sync_words(view.syncs())],
        ["commit", short(environment.get("git_commit")) + (" with local changes" if environment.get("git_diff") else "")],
        ["patch stack", short(environment.get("patch_stack"))],
        ["versions", versions or "unknown"],
        ["hardware", hardware_words(environment)],
    ]
    listed = "".join(f"<li>{html.escape(text[:INCIDENT_CHARACTERS])}</li>" for text in incidents) or "<li>none</li>"
    commands = sorted(view.folder.glob("command*.txt"))
    text = html.escape("\n".join(path.read_text() for path in commands))
    return (
        f"<h2>{html.escape(name)}</h2>{table(['', ''], facts, 'facts')}<h3>Incidents</h3><ul>{listed}</ul>"
        f"<details><summary>Command</summary><pre>{text}</pre></details>"
    )


def short(fingerprint: str | None) -> str:
    return fingerprint[:HASH_DIGITS] if fingerprint else "unknown"


def hardware_words(environment: dict[str, Any]) -> str:
    if "cpus" not in environment or "gpus" not in environment:
        return "unknown"
    return f"{counted(environment['cpus'], 'CPU')}; {', '.join(environment['gpus']) or 'no GPU'}"


def canary_words(canary: dict[str, Any]) -> str:
    """What the gates before step 1 saw, or that they saw nothing."""
    if "correlation" not in canary or "parity/abs_diff_mean" not in canary:
        return "none: the run has no canary.json"
    prompts = f" on responses, {canary['prompt_abs_diff_mean']:.4f} on prompts" if "prompt_abs_diff_mean" in canary else ""
    change = f"{canary['shift']:.2f} nats, " if "shift" in canary else ""
    return (
        f"passed before step 1: parity {canary['parity/abs_diff_mean']:.4f} nats{prompts}; a change of the adapter moved "
        f"trainer and sampler alike ({change}correlation {canary['correlation']:.3f})"
    )


def sync_words(syncs: list[dict[str, Any]]) -> str:
    if not syncs:
        return "none proven yet"
    last = syncs[-1]
    return (
        f"{len(syncs)} proven; the last, policy version {last['policy_version']}, by {counted(last['workers'], 'worker')} of "
        f"{counted(last['engines'], 'engine')}: {counted(last['modules'], 'module')}, {last['mode']}"
    )


def legend() -> str:
    """Generated from the registry of metrics."""
    rows = [[name, metric.unit, metric.meaning] for name, metric in (STAMPS | METRICS).items()]
    return f"<details><summary>What every metric means</summary>{table(['key', 'unit', 'meaning'], rows, 'legend')}</details>"
