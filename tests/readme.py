"""The commands of README.md and docs/, as they stand, and what typing its data block makes."""

import re
import shutil
from pathlib import Path

from workplace import ROOT, Workplace, write_sources

README = (ROOT / "README.md").read_text()
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
TEXT = "\n".join(DOCUMENTS.values())


def block(heading: str) -> list[str]:
    """Lines of the bash block under a heading, without comments."""
    section = TEXT[re.search(rf"^#+ {heading}$", TEXT, re.MULTILINE).start() :]
    return stripped(re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1])


def stripped(text: str) -> list[str]:
    lines = [re.split(r"\s+#\s", line)[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def commands() -> set[str]:
    """Every line of a bash block, and every command in running text, where it may be broken over two lines."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    inline = re.findall(r"`((?:python|bash)\s[^`]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
    return {line for text in blocks for line in stripped(text)} | {" ".join(words.split()) for words in inline}


def typed(line: str) -> str:
    """A command of running text that a test types; `typed_by_tests` reads the calls."""
    assert line in commands(), f"{line} is not in README.md or docs/ any more"
    return line


def make_data(folder: Path) -> None:
    """Type the data block in a copy of the repository in `folder`; its data are then in `folder`/gptoss-rl/data."""
    from gptoss_rl.models.tiny_tokenizer import build_tokenizer

    work = Workplace(folder / "gptoss-rl")
    write_sources(work.folder / "data" / "sources")
    build_tokenizer(131_072).save_pretrained(work.folder / "models" / "gpt-oss-20b")  # all that the filter reads of a model
    fetch, *rest = block("Data")
    refused = work.type(fetch, HF_HUB_OFFLINE="1", HF_HOME=str(work.folder / "cache"))
    assert (refused.returncode, "cannot be fetched" in refused.stderr) == (1, True)  # no test asks the hub
    for line in rest:
        work.must(line, "--rows 3000" if "bench_filter" in line else "")
    shutil.rmtree(work.folder / "models")
