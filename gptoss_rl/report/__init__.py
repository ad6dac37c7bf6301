"""A run as one HTML file that needs no network, or several runs side by side (`python -m gptoss_rl.report`).

`page` puts it together from `charts`, `tables` and `samples`. Runs come as a dictionary from name to `RunView`, in the order of
the command line, which is that of colours, legends and rows.
"""

from gptoss_rl.report.page import ReportError as ReportError
from gptoss_rl.report.page import build as build
