"""Every command that the documents name does what it does for a user, in small, in the order of the pages.

What a page has a reader bring (PHOTOS, REALSR, ...) lies under that very name in the one folder that all of it runs in.
"""

import importlib
import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import documents
import numpy as np
import pytest
import torch
import yaml
from commands import as_options
from documents import ROOT, Snippet
from PIL import Image
from study_images import photograph

import andfast
from andfast.demo.__main__ import _parse as parse_demo
from andfast.models import GENERATORS, build_generator, save_model
from andfast.training.options import parse_config
from bench import attack_quality
from bench.attack_benchmark import parse_variant
from studies import calibration, compare, ship

COMMANDS = documents.commands()
PYTHON = [block for page in documents.PAGES for block in documents.blocks(page, "python")]

SIDE = 64
# NIQE wants two blocks of 96 x 96 pixels.
HR_SIDE = 192
SMALL_NETWORK = {"degradation.channels": 4, "degradation.blocks": 1, "degradation.precision": "float32"}
SMALL_RUN = SMALL_NETWORK | {
    "train.iterations": 2,
    "train.warmup": 1,
    "train.ramp": 0,
    "train.batch_size": 8,
    "train.patch_size": 16,
    "train.validate_every": 0,
    "train.save_every": 0,
    "train.precision": "float32",
    "discriminator.features": 2,
    "data.workers": 0,
    "data.held_out": 1,
    # VGG19's weights are not there.
    "loss.perceptual": 0,
}


def train_options(arguments: list[str]) -> list[str]:
    settings = dict(SMALL_RUN)
    if "--train.iterations" in arguments:  # what is gone on with, for longer than before
        settings["train.iterations"] = 3
    config = parse_config(arguments)
    if config.generator.init is None and config.generator.architecture in GENERATORS:
        settings |= {"generator.features": 4, "generator.depth": 1}
    if not config.data.hr:  # the bundled photographs, which are large
        settings["data.hr"] = "[PHOTOS]"
    return as_options(settings)


@dataclass
class Small:
    """How a module's commands are run.

    Attributes:
        options: what makes them small, appended: later options win.
        names: what placeholders stand for that cannot be the name of a file.
        done: the exit status.
    """

    options: Callable[[list[str]], list[str]] = lambda _: []
    names: dict[str, str] = field(default_factory=dict)
    done: int | None = 0


def few(**settings: object) -> Callable[[list[str]], list[str]]:
    return lambda _: as_options({}, **settings)


MODEL = "runs/andnet/model.safetensors"
DEGRADE = as_options(SMALL_NETWORK | {"attack.steps": 1})


def judge_options(arguments: list[str]) -> list[str]:
    settings = SMALL_NETWORK | {"batches": 1, "batch_size": 2, "patch_size": 16, "num_networks": 2}
    return as_options(settings) + ([] if "--variants" in arguments else ["--variants", "pgd-1@1"])


RUN: dict[str, Small] = {
    "andfast.train": Small(train_options, {"MODEL": "runs/mine/model.safetensors"}),
    "andfast.plot": Small(),
    "andfast.upscale": Small(),
    "andfast.evaluate": Small(),
    "andfast.robustness": Small(
        few(attackers="noise", budgets=34, crops=1, size=32, steps=1, restarts=1),
        {"MODEL": MODEL, "FILE": MODEL},
        done=0,
    ),
    "andfast.degrade": Small(lambda _: [*DEGRADE, "--crop=32"], {"MODEL": MODEL}),
    "andfast.export": Small(names={"MODEL": MODEL}),
    "bench.attack_quality": Small(judge_options, {"MODEL": MODEL, "FILE": MODEL}),
    "andfast.info": Small(done=None),
    "bench.report": Small(names={"FILE": "bench/results/step_cpu_avx512.json"}, done=None),
    "bench.profile": Small(
        few(generator="compact", features=4, depth=1, batch=2, patch=16, rounds=1, workers=0), done=None
    ),
    "bench.scaling": Small(done=None),
    "bench.shared_cores": Small(few(depth=1, batch=1, patch=16, steps=1), done=None),
    "studies.report": Small(),
    "studies.evaluate": Small(few(data__held_out=1), {"MODEL": MODEL}),
    "studies.crops": Small(few(size=16), {"PHOTO": "photo.jpg", "FILE": MODEL}),
    "studies.degraded": Small(
        lambda _: ["--size", "32", *(f"--set={each[2:]}" for each in DEGRADE)], {"PHOTO": "photo.jpg", "MODEL": MODEL}
    ),
    "studies.niqe": Small(names={"DIR": "SHARP", "FILE": "pristine"}),
}


def run(module: str, arguments: list[str]) -> int | None:
    return importlib.import_module(module).main(arguments)


def paths_exist(command: Snippet) -> None:
    named = [word for word in command.words if word.endswith((".py", "/"))]
    assert all((ROOT / name).exists() for name in named), named


def extras_exist(command: Snippet) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"\[([\w,]+)\]", command.text):
        assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(",")), extras


def trains(command: Snippet) -> None:
    (arguments,) = re.findall(r"-m andfast\.train ([^']+)", command.text)
    parse_config(given(Snippet(command.file, command.line, arguments).words, {}))


def judges(command: Snippet) -> None:
    arguments = command.words[command.words.index("--variants") + 1 :]
    assert all(parse_variant(name, andfast.PGD()).name == name for name in arguments)
    assert attack_quality.make_parser().parse_args(["--model", "FILE"])


def parses(parse: Callable[[list[str]], object]) -> Callable[[Snippet], None]:
    def check(command: Snippet) -> None:
        assert parse(given(command.words[3:], {}))

    return check


# What is not run, by how its text begins (for files of configurations: all of it); why; and what is looked at instead.
NOT_RUN: list[tuple[str, str, Callable[[Snippet], None] | None]] = [
    (r"configs/\S+ python -m andfast\.train ", "tests/training/test_configs.py trains by each configuration", trains),
    (r"configs/\S+ python -m bench\.attack_quality ", "docs/attacks.md has more such", judges),
    (r"\S+ python3 -m venv \.venv$", "the continuous integration makes one by this command", None),
    (r"\S+ (\.venv/bin/)?pip install ", "needs a package registry", extras_exist),
    (r"\S+ \S*(ruff |mypy)", "the continuous integration runs them", None),
    (r"\S+ \S*python -m andfast\.demo", "it serves until Ctrl-C: tests/demo has browsers come", parses(parse_demo)),
    (r"\S+ \S*mkdocs ", "tests/test_site.py builds the site", None),
    (r"\S+ ssh ", "needs another machine", None),
    (r"\S+ (ffmpeg|mkdir) ", "another program's; tests/test_upscale.py has its frames", None),
    (r"\S+ torchrun ", "several processes: tests/training/test_several_processes.py starts them", trains),
    (r"\S+ srun ", "needs Slurm", trains),
    (r"\S+ export MASTER_ADDR=", "needs Slurm", None),
    (r"\S+ (OMP_NUM_THREADS=\d+ )?\S*python -m pytest", "tests run here; benches take minutes", paths_exist),
    (r"\S+ python inference_realesrgan\.py ", "another program's; tests/test_export.py says what it reads", None),
    (r"\S+ python -m bench\.triton_resources$", "tests/ops/triton_backend/test_resources.py compiles a part", None),
    (r"\S+ python -m andfast\.train --print_schema >", "tests/training/test_schema.py prints it", None),
    (r"\S+ python -m studies\.compare ", "hours", parses(compare.make_parser().parse_args)),
    (r"\S+ python -m studies\.calibration ", "hours", parses(calibration.make_parser().parse_args)),
    (r"\S+ python -m studies\.ship ", "hours", parses(ship._parse)),
]  # fmt: skip


def given(words: list[str], names: dict[str, str]) -> list[str]:
    """A command's arguments as a user would give them: placeholders replaced, "and so on" left out."""
    words = [word.removesuffix("...").removeprefix("/fast/") for word in words]
    for name, value in names.items():
        words = [re.sub(rf"\b{name}\b", value, word) for word in words]
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all commands run: with what the repository has, and what users bring."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("andfast", "configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("bench", "studies"):
        shutil.copytree(ROOT / name, folder / name)
    photographs = "PHOTOS MORE_PHOTOS SOME_PHOTOS PHOTOGRAPHS DIR folder frames data/real_lr"
    for name in photographs.split():
        write(folder / name / "photo_0.png", 0)
    for seed, name in enumerate(("gb82_girl-lossless", "gb82_prudential-lossless", "clic_100a02c269c5_0"), start=1):
        write(folder / "PHOTOS" / f"{name}.png", seed)
    write(folder / "PHOTOS" / "clic_a10ae819a2d2_0.png", 4)
    write(folder / "OTHER_PHOTOS" / "photo_0.png", 4, HR_SIDE)
    write(folder / "photo.jpg", 5)
    write(folder / "old_photo.jpg", 6)
    for name in ("PAIRS", "CAMERA_PAIRS", "data/real_pairs/realsr_canon_x4", "data/real_pairs/ntire19_x4",
                 "data/classic/set5", "data/classic/set14"):  # fmt: skip
        write_pair(folder / name / "HR" / "Canon_1.png", folder / name / "LR" / "Canon_1.png")
        write_pair(folder / name / "HR" / "Canon_2.png", folder / name / "LR" / "Canon_2.png")
    for name in ("REALSR", "RealSR"):
        test = folder / name / "Canon" / "Test" / "4"
        write_pair(test / "Canon_1_HR.png", test / "Canon_1_LR4.png")
    test = folder / "DRealSR" / "Test_x4"
    write_pair(test / "test_HR" / "sony_1_x4.png", test / "test_LR" / "sony_1_x1.png")
    (folder / "SHARP").mkdir()  # of more than 36 blocks
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (672, 672, 3), np.uint8)).save(
        folder / "SHARP/gb82_0.png"
    )
    save_model(build_generator("rrdbnet", 4, features=4, blocks=1), folder / "RealESRGAN_x4plus.pth")
    (folder / "CONFIG").write_text(yaml.safe_dump({"attack": {"steps": 1}, "degradation": {"num_networks": "batch"}}))
    twin = folder / "runs/ship/andnet_compact_x4/classical/model.safetensors"
    twin.parent.mkdir(parents=True)
    shutil.copy(ROOT / "andfast/pretrained/andnet_compact_x4.safetensors", twin)
    (folder / "docs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def write(path: Path, seed: int, size: int = SIDE) -> Image.Image:
    image = Image.fromarray(photograph(seed, size))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


def write_pair(hr: Path, lr: Path) -> None:
    image = write(hr, 6, HR_SIDE)
    lr.parent.mkdir(parents=True, exist_ok=True)
    image.reduce(4).save(lr)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_it_works(command: Snippet, place: Path) -> None:
    for pattern, _, check in NOT_RUN:
        if re.match(pattern, f"{command.file} {command.text}"):
            if check is not None:
                check(command)
            return
    words = command.words
    python = words[0].rpartition("/")[2] == "python" and words[1] == "-m"
    module = words[2] if python else ""
    assert module in RUN, f"a command in {command.file} line {command.line} is not run by any test: {command.text}"
    small, arguments = RUN[module], words[3:]
    if not arguments and command.file != "README.md":  # a name in running text
        assert importlib.util.find_spec(module)
        return
    arguments = given(arguments, small.names)
    if arguments != ["--help"]:
        arguments += small.options(arguments)
    try:
        status = run(module, arguments)
    except SystemExit as end:
        status = end.code if arguments != ["--help"] or end.code else small.done
    assert status == small.done


def test_what_is_not_run_stands_in_the_documents() -> None:
    for pattern, *_ in NOT_RUN:
        assert any(re.match(pattern, f"{command.file} {command.text}") for command in COMMANDS), pattern


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_its_lines_run(block: Snippet, place: Path) -> None:
    if "basicsr" in block.text:
        pytest.skip("basicsr is not there; tests/test_examples.py runs this with a stand-in for it")
    torch.manual_seed(0)
    names = {"andfast": andfast, "image": torch.rand(3, 8, 12), "model": andfast.load_pretrained()}
    exec(block.text, names)
    if block.file == "README.md":
        result = names["result"]
        assert isinstance(result, andfast.AttackResult)
        assert result.lr.shape == (4, 3, 16, 16)
        assert (result.lr_psnr >= 22).all()
        assert (result.loss_after > result.loss_before).all()
    if "large" in names:
        assert names["large"].shape[-2:] == {"docs/interop.md": (192, 256)}.get(block.file, (32, 48))
