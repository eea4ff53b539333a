"""A hook of `mkdocs build`: README.md becomes the first page, and files of the repository that a page links
to become files of the site.

Pages in docs/ link to them as `../PATH`, which works in the repository, too. A link to a missing file stays
broken, and strict mode reports it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(\.\./([^)#]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add README.md and the files that the pages link to."""
    readme = (ROOT / "README.md").read_text("utf-8")
    readme = re.sub(r"\]\((?!docs/|https?:)", "](../", readme).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    for page in list(files.documentation_pages()):
        for path in LINK.findall(page.content_string):
            if (ROOT / path).is_file() and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links to their place in the site, where docs/ is the top."""
    return LINK.sub(r"](\1", markdown)
