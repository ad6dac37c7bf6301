"""What a set of right and wrong answers lets one say; scipy and statsmodels do the statistics.

`tiers`: what a set may be used for. `scores`: one evaluation. `comparison`: two of the same problems. `power`: what n
problems can show. `words`: what may be concluded. The command line is in `__main__`.
"""

from gptoss_rl.stats.base import ALPHA, POWER, StatsError
from gptoss_rl.stats.comparison import Comparison, compare, corrected, holm, mcnemar, paired
from gptoss_rl.stats.power import detectable_mcnemar, mcnemar_power, problems_needed
from gptoss_rl.stats.scores import Score, pass_at_every_k, pass_at_k, score, wilson
from gptoss_rl.stats.tiers import Tier, tier_label, tier_of
from gptoss_rl.stats.words import conclusion, report

__all__ = [
    "ALPHA",
    "POWER",
    "Comparison",
    "Score",
    "StatsError",
    "Tier",
    "compare",
    "conclusion",
    "corrected",
    "detectable_mcnemar",
    "holm",
    "mcnemar",
    "mcnemar_power",
    "paired",
    "pass_at_every_k",
    "pass_at_k",
    "problems_needed",
    "report",
    "score",
    "tier_label",
    "tier_of",
    "wilson",
]
