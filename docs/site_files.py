"""What MkDocs makes the site of (mkdocs.yml): the repository's pages, where they lie, so that all their links hold.

Files that a page links are copied, folders get a page that lists them, and the modules of docs/api.md one with their
docstrings.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
API = "docs/api.md"
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
_MODULE = re.compile(r"^\| `(andfast[\w.]*)` \|", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the repository's pages and what they link instead of the files below docs/."""
    style = [ROOT / name for name in config.extra_css]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("andfast/pretrained/*.md")]
    linked = {page.parent / link for page in pages for link in _LINK.findall(page.read_text(encoding="utf-8"))}
    names = {
        posixpath.normpath(path.relative_to(ROOT).as_posix()) for path in [*style, *pages, *linked] if path.exists()
    }
    for folder in [name for name in names if (ROOT / name).is_dir()]:
        names.remove(folder)
        inside = sorted(path.name for path in (ROOT / folder).iterdir() if path.is_file() and path.name[0] not in "._")
        names |= {f"{folder}/{name}" for name in inside}
        listing = "\n".join(f"- [{name}]({name})" for name in inside)
        _add(files, config, f"{folder}/index.md", f"# {folder}\n\n{listing}\n")
    for module in _MODULE.findall((ROOT / API).read_text(encoding="utf-8")):
        _add(files, config, f"docs/api/{module}.md", f"# {module}\n\n::: {module}\n")
    kept = [file for file in files if file.src_dir != config.docs_dir]  # those of the theme, and those made here
    made = [File.generated(config, name, abs_src_path=str(ROOT / name)) for name in sorted(names)]
    return Files([*kept, *made])


def _add(files: Files, config: MkDocsConfig, name: str, content: str) -> None:
    files.append(File.generated(config, name, content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to folders lead to their pages, and the table of modules to theirs."""
    here = posixpath.dirname(page.file.src_uri)

    def lead(link: re.Match[str]) -> str:
        index = posixpath.normpath(posixpath.join(here, link[1], "index.md"))
        return f"]({link[1].rstrip('/')}/index.md" if files.get_file_from_path(index) else link[0]

    markdown = _LINK.sub(lead, markdown)
    return _MODULE.sub(r"| [`\1`](api/\1.md) |", markdown) if page.file.src_uri == API else markdown
