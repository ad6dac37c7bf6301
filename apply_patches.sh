#!/usr/bin/env bash
# Makes the installed OpenRLHF exactly pristine + patches/series. At most 3 s, 2 MB beside the package, no network.
#   bash apply_patches.sh                      apply; does nothing when it is done already
#   bash apply_patches.sh --check              exit 0 only if the package is that, byte for byte (launchers call this)
#   bash apply_patches.sh --report 0.9.5       hunk by hunk, what a port to another version or folder needs
# Also: --restore, --dry-run, --table, --write-table; --help explains them. What it does and why: patches/README.md
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "apply_patches: $python is not Python 3.10 or newer: run bash setup_env.sh first" >&2
    exit 1
fi

# The caller's directory stays the working directory, so that --report takes a relative path.
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m gptoss_rl.stack.apply "$@"
