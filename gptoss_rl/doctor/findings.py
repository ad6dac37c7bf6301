"""A line of preflight's table."""

from dataclasses import dataclass

OK, WARNING, STOP, UNKNOWN = "ok", "warning", "stop", "not checked"
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was seen, and what to do about it."""

    level: str
    check: str
    seen: str
    remedy: str = ""


def rated(good: bool, bad_level: str, check: str, seen: str, remedy: str) -> Finding:
    """`ok` without a remedy, or `bad_level` with it."""
    return Finding(OK, check, seen) if good else Finding(bad_level, check, seen, remedy)


def shown(terms: dict[str, float]) -> str:
    """An estimate in GB: the sum, then the terms that count."""
    parts = ", ".join(f"{name} {value:.1f}" for name, value in terms.items() if value >= 0.05)
    return f"{sum(terms.values()):.1f} GB" + (f" ({parts})" if parts else "")
