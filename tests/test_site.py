"""The site of the documents: it is built without a warning, and all that its pages point to is there."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documents import PAGES, ROOT
from test_api import MODULES

from andfast import DegradationNetwork

pytest.importorskip("material")
pytest.importorskip("mkdocstrings")


class Names(HTMLParser):
    """What a page points to, and the names that it can be pointed to by."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value and not urlsplit(value).scheme:
                self.links.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_lie_where_their_sources_do(site: Path) -> None:
    names = [page.relative_to(ROOT).with_suffix(".html").as_posix() for page in PAGES]
    names += [f"docs/api/{module}.html" for module in MODULES]
    missing = [name for name in names if not (site / name.replace("README", "index")).is_file()]
    assert missing == []


def test_all_that_pages_point_to_is_there(site: Path) -> None:
    pages = {path: Names(path) for path in site.rglob("*.html")}
    del pages[site / "404.html"]  # whose links begin at the address where the site will be
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path}: {link}"
            assert target not in pages or unquote(parts.fragment) in pages[target].anchors, f"{path}: {link}"


def test_docstrings_are_on_the_pages_of_their_modules(site: Path) -> None:
    page = (site / "docs" / "api" / "andfast.html").read_text(encoding="utf-8")
    assert 'id="andfast.DegradationNetwork.reset_identity"' in page
    first, *_ = DegradationNetwork.__doc__.splitlines()
    assert first.partition("`")[0] in page
    assert 'href="api/andfast.attack.html"' in (site / "docs" / "api.html").read_text(encoding="utf-8")
