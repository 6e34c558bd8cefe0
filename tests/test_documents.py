"""The documents among themselves and beside the code: what they point to is there, what they name has that name."""

import json
import re
from pathlib import Path

import pytest
from documents import PAGES, ROOT, prose

from andfast.training.checkpoints import _CHANGEABLE
from andfast.training.config import Config


def anchors(page: Path) -> set[str]:
    """The names that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_it_points_to_exists(page: Path) -> None:
    text = prose(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link
    for path in re.findall(
        r"`((?:andfast|bench|configs|csrc|docs|examples|studies|tests)/[\w./*-]+)`", page.read_text()
    ):
        assert list(ROOT.glob(path.rstrip("/"))), path
    for name in re.findall(r"configs/\w+\.yaml", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_settings_that_it_names_exist(page: Path) -> None:
    settings = Config().to_dict()
    groups = "|".join(key for key, value in settings.items() if isinstance(value, dict))
    for group, key in re.findall(rf"[`-]({groups})\.(?!(?:pth|md|safetensors)\b)(\w+)", prose(page)):
        assert key in settings[group], f"{group}.{key}"


def test_readme_links_every_page() -> None:
    linked = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        assert name in linked or name == "README.md", name


def test_contributing_maps_the_house() -> None:
    """Every folder that there is to read, and every package of andfast."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w./]+)`", text[: text.index("\n## Tests")]))
    tracked = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders = {path.name for path in tracked if any(path.glob("**/*.*")) and not path.name.endswith(".egg-info")}
    folders -= {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert {f"{folder}/" for folder in folders} <= named
    assert {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in ROOT.glob("andfast/*/__init__.py")} <= named


def test_the_guide_s_table_of_attacks_is_what_was_measured() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    (table,) = re.findall(r"<!-- guide: attacks -->\n(.*?)\n\n", guide, re.DOTALL)
    found = {}
    for line in table.splitlines()[2:]:
        name, *cells = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        found[name] = [None if cell in ("", "-") else float(cell.rstrip("%")) for cell in cells]
    steps = {"pgd-5": "exact", "free-4": "free-4@0.4"}
    judged = {"free-4": "free-4@0.4"}
    trained = {"yopo-1-3@0.5+last": "yopo-1-3", "pgd-1@1+last": "pgd-1"}
    trained["the same from a random start"] = "pgd-1, random start"
    results = ROOT / "bench" / "results"
    times = {}
    for benchmark in json.loads((results / "step_cpu_avx512.json").read_text())["benchmarks"]:
        if benchmark["group"] == "step rrdbnet 2x128":
            times[benchmark["extra_info"]["variant"]] = benchmark["extra_info"]["times_plain"]
    quality = json.loads((results / "attack_quality_compact_batch.json").read_text())["variants"]
    shares = {variant["name"]: variant["share_of_pgd-5"]["mean"] for variant in quality}
    gains = json.loads((ROOT / "studies" / "results" / "attacks_compact.json").read_text())["tables"]["time"]["psnr_y"]
    for name, (update, share, *gained) in found.items():
        assert update == rounded(times.get(f"andfast {steps.get(name, name)}"), 2), name
        assert share == rounded(shares.get(judged.get(name, name)), 2, 100), name
        for value, kind in zip(gained, ("reporting, all", "all strengths"), strict=True):
            row = gains[kind].get(trained.get(name, name), {}) if name != "pgd-5" else {}
            assert value == rounded(row.get("over_reference", {}).get("mean"), 2), (name, kind)


def test_the_guide_says_which_settings_may_change() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    (table,) = re.findall(r"<!-- guide: may change -->\n(.*?)\n\n", guide, re.DOTALL)
    assert sorted(re.findall(r"`([^`]+)`", table)) == sorted(_CHANGEABLE)


def rounded(value: float | None, digits: int, factor: int = 1) -> float | None:
    return None if value is None else round(value, digits) * factor
