"""README's promises, as far as they can be kept in seconds; its commands are what CI runs."""

import re
from pathlib import Path

import pytest

import andfast
from andfast.attack.variants import parse_variant
from andfast.training.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    result = names["result"]
    assert isinstance(result, andfast.AttackResult)
    assert result.lr.shape == (4, 3, 16, 16)
    assert (result.lr_psnr >= 22).all()
    assert (result.loss_after > result.loss_before).all()


def test_files_it_points_to_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in [*links, *re.findall(r"configs/\w+\.yaml", README)]:
        name, _, heading = link.partition("#")
        assert (ROOT / name).exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)", (ROOT / name).read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings], link


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_files_and_settings_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / name).exists(), name
    for group, key in re.findall(r"`(attack|train|degradation|generator|data|loss|discriminator)\.(?!pth`)(\w+)", text):
        assert key in Config().to_dict()[group], f"{group}.{key}"


def test_the_variants_that_the_page_of_attacks_names_can_be_judged() -> None:
    (names,) = re.findall(r"--variants (.+)", (ROOT / "docs" / "attacks.md").read_text())
    for name in names.split():
        assert parse_variant(name, andfast.PGD()).name == name
