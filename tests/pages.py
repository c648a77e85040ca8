"""What a page of the documentation shows: the files that it writes out, and its commands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def files(page: str) -> dict[str, str]:
    """The blocks of a page that begin with a comment that names their file: name -> content."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|yaml)\n(# (\S+)\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    return {name: content for content, name in blocks}


def write_files(page: str, folder: Path) -> None:
    """Write them."""
    for name, content in files(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
