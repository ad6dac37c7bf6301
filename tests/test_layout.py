"""What the folders may use is what the README says, and no file hides much."""

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gptoss_rl"


def imports() -> dict[str, set[str]]:
    """Folder or module of gptoss_rl -> the others that it imports, wherever in its files; `__main__` files stand apart."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gptoss_rl":
                modules = [node.module] if "." in node.module else [f"gptoss_rl.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names if alias.name.startswith("gptoss_rl.")]
            found[own] |= {module.split(".")[1] for module in modules} - {own}
    return found


def allowed() -> tuple[dict[str, set[str]], set[str]]:
    """The README's table, and what all may use."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `gptoss_rl/(\w+)(?:/|\.py)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    shared = text[text.index("All may use") : text.index("`tests/test_layout.py` holds")]
    return {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}, set(re.findall(r"`(\w+)\.py`", shared))


def test_folders_use_what_the_readme_lets_them() -> None:
    table, shared = allowed()
    seen = imports()
    assert set(table) | shared == set(seen) - {"__init__"}, "the README's table and the folders differ"
    for name, used in seen.items():
        assert used <= table.get(name, set()) | shared, f"gptoss_rl/{name} imports {used - table.get(name, set()) - shared}"
    # Nothing is let in that is not used, so the table stays true.
    unused = {name: may - seen[name] for name, may in table.items() if may - seen[name]}
    assert unused == {}


def test_there_is_no_circle() -> None:
    graph, _ = allowed()
    order: list[str] = []
    while graph:
        free = [name for name, used in graph.items() if not used & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        order += free
        graph = {name: used for name, used in graph.items() if name not in free}


def test_every_folder_is_a_package_that_git_and_the_linter_see() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for folder in (path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"gptoss_rl/{folder.name}/__init__.py" in tracked.stdout.splitlines()


def test_files_and_functions_stay_readable() -> None:
    long_files, long_functions = [], []
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")]:
        text = path.read_text()
        if text.count("\n") > 500:
            long_files.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno > 60:
                long_functions.append(f"{path.name}: {node.name}")
    assert long_files == []
    assert long_functions == []
