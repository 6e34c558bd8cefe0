import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from andfast.attack import (
    BSRGAN,
    PGD,
    YOPO,
    AdversarialNoise,
    Attack,
    Bicubic,
    FreeAT,
    RandomDeviation,
    RealESRGAN,
    StyleShift,
    SubsetPGD,
)
from andfast.training.checkpoints import flat
from andfast.training.config import Config, TrainConfig
from andfast.training.options import CONFIGS, configuration_names, parse_config
from andfast.training.setting_names import _MEANT
from andfast.utils.yaml_files import dump_yaml


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as error:
        parse_config(arguments)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_without_arguments_it_is_the_default() -> None:
    assert parse_config([]) == Config()


def test_options_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: {iterations: 7, warmup: 3}\nattack: {scale_factors: {conv_dc: 5, conv: .inf}}\n")
    config = parse_config(["--config", str(file), "--train.warmup", "2", "--attack.method=random"])
    assert (config.train.iterations, config.train.warmup, config.attack.method) == (7, 2, "random")
    assert config.attack.scale_factors.conv_dc == 5
    assert config.attack.scale_factors.conv == math.inf
    assert config.train.batch_size == TrainConfig().batch_size


def test_a_dumped_configuration_is_complete_and_reads_back_the_same(tmp_path: Path) -> None:
    config = parse_config(["--data.hr", "a", "b", "--attack.psnr_range", "[20, 30]", "--degradation.num_networks", "2"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config.to_dict()))
    assert yaml.safe_load(file.read_text()).keys() == Config.__dataclass_fields__.keys()
    assert parse_config(["--config", str(file)]) == config


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.hr", "a", "b"],
        ["--data.hr=a", "b"],
        ["--data.hr", '["a", "b"]'],
        ["--data.hr", "a", "b", "--seed", "1"],
    ],
)
def test_folders_are_given_one_after_another(arguments: list[str]) -> None:
    assert parse_config(arguments).data.hr == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.iteration", "5"], ["train.iteration ", "did you mean train.iterations?", "train.warmup"]),
        (["--sed", "5"], ["sed is no setting", "did you mean seed?"]),
        (["--opt", "mine.yml"], ["opt is no setting; did you mean --config?"]),
        (
            ["--train.optimizer", "AdamW"],
            ["train.optimizer is AdamW; did you mean adamw? It must be one of adam, "],
        ),
        (["--scale", "5"], ["error: scale is 5; it must be one of 1, 2, 3, 4, 8\n"]),
        (
            ["--attack.method", "PGD"],
            ["attack.method is PGD; did you mean pgd? It", ", or a class of your own, as"],
        ),
        (["--data.held_out", "0"], ["error: data.held_out is 0; it must be above 0\n"]),
        (["--train.warmup", "-1"], ["error: train.warmup is -1; it must be at least 0\n"]),
        (
            ["--attack.min_psnr", "28"],
            ["min_psnr is no setting; did you mean attack.psnr_range? Its default is [22.0, 36.0]; allowed"],
        ),
        (["--lr", "1e-4"], ["did you mean train.learning_rate? Its default is 0.002"]),
        (["--train.lr", "1e-4"], ["did you mean train.learning_rate?"]),
        (["--train.optim_g.lr", "1e-4"], ["did you mean train.learning_rate?", "there is no group train.optim_g"]),
        (["--batch", "4"], ["did you mean train.batch_size?"]),
        (["--batch_size", "4"], ["did you mean train.batch_size?"]),
        (["--train.total_iter", "4"], ["did you mean train.iterations?"]),
        (["--num_iter", "4"], ["did you mean train.iterations?"]),
        (["--gt_size", "128"], ["did you mean train.patch_size?"]),
        (["--optim_g", "AdamW"], ["did you mean train.optimizer?"]),
        (["--loss.lambda_gan", "1"], ["did you mean loss.gan?"]),
        (["--milestones", "[5]"], ["did you mean train.milestones?"]),
        (["--data.dataroot_gt", "x"], ["did you mean data.hr?"]),
        (["--train.grad_clip", "1"], ["did you mean train.clip_grad?"]),
        (["--val_freq", "1"], ["did you mean train.validate_every?"]),
        (["--train.learnin_rate", "1"], ["did you mean train.learning_rate?"]),
        (["--xyzzy", "1"], ["xyzzy is no setting; allowed are", "print_config, run_dir"]),
        (["--attack.keep", "last"], ["attack.keep is no setting", "it is called attack.return_iterate now"]),
        (["--attack.lr_psnr", "[22, 36]"], ["attack.lr_psnr is no setting", "it is called attack.psnr_range now"]),
        (
            ["--attack.method", "fgsm"],
            ["attack.method is fgsm; it must be one of pgd, ", " random, noise, ", " none, "],
        ),
        (["--train.iterations", "-3"], ["train.iterations", "-3"]),
        (["--train.batch_size", "many"], ["train.batch_size", "many"]),
        (["--train.patch_size", "66"], ["train.patch_size", "66", "multiple of scale, 4"]),
        (["--train.patch_size", "4"], ["train.patch_size", "at least 8"]),
        (["--train.ema_decay", "1.5"], ["train.ema_decay", "[0, 1)"]),
        (["--degradation.num_networks", "3"], ["degradation.num_networks", "train.batch_size", "'batch'"]),
        (["--attack.psnr_range", "[40, 20]"], ["psnr_range", "low <= high"]),
        (["--attack.method", "noise", "--attack.psnr_range", "null"], ["attack.psnr_range", "noise"]),
        (["--attack.noise_every", "2", "--attack.psnr_range", "null"], ["attack.psnr_range", "attack.noise_every"]),
        (["--attack.noise_every", "2", "--attack.method", "free"], ["attack.noise_every is 2", "free"]),
        (["--attack.baseline", "bicubic", "--attack.method", "free"], ["attack.baseline is bicubic", "free", "null"]),
        (["--attack.scale_factors.noise", "-1"], ["noise", "positive"]),
        (["--attack.method", "subset"], ["attack.method subset", "degradation.num_networks 1, not 2"]),
        (
            ["--attack.method", "subset", "--degradation.num_networks", "1", "--attack.share", "1.5"],
            ["attack.share is 1.5", "(0, 1]"],
        ),
        (["--attack.share", "0"], ["attack.share", "0"]),
        (["--attack.return_iterate", "best"], ["attack.return_iterate", "one of worst, last", "best"]),
        (["--attack.step_ratio", "-1"], ["attack.step_ratio", "-1"]),
        (["--attack.step_ratio", "0.5", "--attack.epsilon", "inf"], ["attack.step_ratio", "infinite epsilon"]),
        (["--attack.inner_steps", "0"], ["attack.inner_steps", "0"]),
        (["--attack.replays", "0"], ["attack.replays", "0"]),
        (["--attack.dtype", "float8"], ["attack.dtype", "bfloat16, float16", "float8"]),
        (["--generator.name", "rrdbnet", "--scale", "3"], ["rrdbnet", "3", "compact"]),
        (["--scale", "5"], ["scale", "5", "8"]),
        (["--train.micro_batch", "3"], ["train.micro_batch is 3", "divide train.batch_size, 8"]),
        (
            ["--train.micro_batch", "4", "--train.batch_size", "12", "--degradation.num_networks", "2"],
            ["train.micro_batch is 4", "num_networks 2", "6 images", "multiple or a divisor"],
        ),
        (["--train.micro_batch", "2", "--degradation.noise", "gaussian"], ["train.micro_batch is 2", "multiple of 4"]),
        (["--train.checkpoint_blocks", "true"], ["train.checkpoint_blocks", "rrdbnet", "compact", "train.micro_batch"]),
        (["--compile", "never"], ["compile", "'auto'", "'on'", "'off'", "never"]),
        (["--train.learning_rate", "inf"], ["train.learning_rate is inf", "finite"]),
        (["--train.learning_rate", "nan"], ["train.learning_rate", "nan"]),
        (["--attack.mix.share", "inf"], ["attack.mix.share is inf", "finite"]),
        (["--train", '{"iterations": null, "warmup": 1}'], ["train.iterations is null", "default, 800"]),
        (["--train.log_every", "0"], ["train.log_every", "0"]),
        (["--config", "missing.yaml"], ["missing.yaml"]),
        (["--data.hr"], ["data.hr"]),
        (["--data.hr", "a", "--data.weights", "[1, 2]"], ["data.weights is [1.0, 2.0]", "each of data.hr, 1"]),
        (
            ["--data.hr", "a", "b", "--data.weights", "[1, 1e-6]"],
            ["data.weights is [1.0, 1e-06]", "0.0001 of their sum"],
        ),
        (["--data.hr", "a", "b", "--data.weights", "[1, 0]"], ["data.weights", "0"]),
        (["--data.cache", "pixels"], ["data.cache is pixels", "data.hr"]),
    ],
)
def test_wrong_settings_are_refused_by_name(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(arguments, capsys)
    for word in words:
        assert word in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_are_read_in_usual_encodings(encoding: str, tmp_path: Path) -> None:
    text = "# \u8bad\u7ec3\r\ntrain:\r\n  learning_rate: 1e-4\r\n  iterations: 1_000\r\n  batch_size: '4'\r\n"
    (tmp_path / "c.yaml").write_bytes((text + "run_dir: \u7ed3\r\n").encode(encoding))
    config = parse_config(["--config", str(tmp_path / "c.yaml")])
    found = (config.train.learning_rate, config.train.iterations, config.train.batch_size, config.run_dir)
    assert found == (1e-4, 1000, 4, "\u7ed3")


@pytest.mark.parametrize(
    "name", [os.fsdecode(b"r\xe9sultats"), "\u7ed3", "1e5", "C:", "[x] {y}", "a: b", "yes", "a\nb"]
)
def test_every_name_is_read_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    config = parse_config(["--run_dir", name, "--data.hr", name, name, "--data.val_pairs", name])
    assert (config.run_dir, config.data.hr, config.data.val_pairs) == (name, [name, name], name)
    file = tmp_path / os.fsdecode(b"\xe9.yaml")
    file.write_text(dump_yaml(config.to_dict()))
    assert parse_config(["--config", str(file)]) == config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["holds no settings"]),
        ("# seed: 1\n", ["holds no settings"]),
        ("- seed\n- 1\n", ["holds no settings"]),
        ("seed\n", ["holds no settings"]),
        ("seed: 1\ntrain:\n", ["no setting below train"]),
        ("train:\n  # iterations: 2\n", ["no setting below train"]),
        ("seed: 1\ntrain:\n\titerations: 2\n", ["line 3", "\\t"]),
        ("seed: 1\nscale: 4\nseed: 2\n", ["line 3", "seed stands twice"]),
        ("train: {iterations: 1}\nscale: 4\ntrain: {warmup: 2}\n", ["line 3", "train stands twice"]),
        ("train: {iterations: 1}\ntrain.iterations: 2\n", ["train.iterations stands twice"]),
        ("train: 5\n", ["train is 5", "group", "train.iterations"]),
        ("train: []\n", ["train is []", "group"]),
        ("attack: true\n", ["attack is True", "group"]),
        ("attack: {mix: 0.5}\n", ["attack.mix is 0.5", "group"]),
        ("seed:\n", ["seed is null", "default, 0"]),
        ("train: {iterations: }\n", ["train.iterations is null", "default, 800"]),
        ("train.batch_size: ~\n", ["train.batch_size is null", "default, 8"]),
        ("attack: {scale_factors: {conv: ~}}\n", ["attack.scale_factors.conv is null", "default, 1.0"]),
        ("data: {hr: ~}\n", ["data.hr is null", "default, []"]),
        ("loss: {perceptual_layers: }\n", ["loss.perceptual_layers is null"]),
        ("train: {learning_rate: .inf}\n", ["train.learning_rate is inf", "finite"]),
        ("data: {soften: [1, .inf]}\n", ["data.soften is [1, inf]", "finite"]),
        ("loss: {gan: .inf}\n", ["loss.gan is inf", "finite"]),
        ("train: &a\n  x: *a\n", ["train.x holds itself"]),
        ("data: &a [*a]\n", ["data.0 holds itself"]),
    ],
)
def test_a_file_that_would_be_misunderstood_is_refused(
    content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    message = refused(["--config", str(file)], capsys)
    for word in [str(file), *words]:
        assert word in message


def test_null_and_infinity_are_accepted_where_they_are_valid(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("attack: {psnr_range: ~, lens: ~, epsilon: .inf}\ngenerator: {features: ~}\n")
    config = parse_config(["--config", str(file)])
    assert (config.attack.psnr_range, config.attack.lens, config.attack.epsilon) == (None, None, math.inf)
    assert config.generator.features is None


@pytest.mark.parametrize("kind", ["folder", "dangling"])
def test_a_configuration_file_that_cannot_be_read_is_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.mkdir() if kind == "folder" else file.symlink_to(tmp_path / "nowhere")
    assert str(file) in refused(["--config", str(file)], capsys)


@pytest.mark.parametrize("name", configuration_names())
@pytest.mark.parametrize("written", ["apart", "together"])
def test_configurations_are_found_by_their_names(
    name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder: they lie in the package."""
    monkeypatch.chdir(tmp_path)
    option = ["--config", name] if written == "apart" else [f"--config={name}"]
    more = ["--attack.mix.pairs=pairs"] if name == "table2/oracle" else []
    assert parse_config([*option, *more]) == parse_config([f"--config={CONFIGS / name}.yaml", *more])


def test_a_file_comes_before_a_configuration_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("compact_x4").write_text("seed: 77\n")
    assert parse_config(["--config", "compact_x4"]).seed == 77
    assert parse_config(["--run_dir", "andnet_x2"]).run_dir == "andnet_x2"
    Path("andnet_compact_x4").mkdir()  # as --run_dir makes one
    for name in ("andnet_compact_x4", "andnet_compact_x4.yaml"):
        assert parse_config(["--config", name]).generator.features == 64


def test_an_unknown_configuration_is_refused_with_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    message = " ".join(refused(["--config", "andnet_compact_x5"], capsys).split())
    assert "andnet_compact_x5: no such file, nor a configuration of andfast; those are andgan_compact_x4," in message


def test_a_file_of_another_trainer_is_refused_with_our_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("scale: 4\ntrain:\n  optim_g: {type: AdamW, lr: 1e-4}\n  total_iter: 5\n")
    assert "did you mean train.optimizer?" in refused(["--config", str(file)], capsys)


def test_all_synonyms_are_of_settings() -> None:
    known = set(flat(Config().to_dict()))
    assert set(_MEANT.values()) <= known | {"data.weights", "config"}


@pytest.mark.parametrize("text", ["attack:\n  lr_psnr: [22, 36]\n", "attack.lr_psnr: [22, 36]\n"])
def test_a_renamed_key_in_a_file_is_refused_with_its_new_name(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert "it is called attack.psnr_range now" in refused(["--config", str(file)], capsys)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("pgd", PGD),
        ("yopo", YOPO),
        ("subset", SubsetPGD),
        ("free", FreeAT),
        ("random", RandomDeviation),
        ("noise", AdversarialNoise),
        ("style", StyleShift),
        ("none", Bicubic),
        ("bsrgan", BSRGAN),
        ("real_esrgan", RealESRGAN),
    ],
)
def test_every_method_has_its_attack(method: str, kind: type) -> None:
    assert type(parse_config(["--attack.method", method, "--degradation.num_networks", "1"]).attack.build()) is kind


def test_the_attack_gets_the_settings() -> None:
    options = ["--attack.steps=3", "--attack.step_size=0.5", "--attack.epsilon=2", "--attack.psnr_range=null"]
    attack = parse_config([*options, "--attack.scale_factors.slope=7"]).attack.build()
    assert (attack.steps, attack.step_size, attack.epsilon, attack.psnr_range) == (3, 0.5, 2, None)
    assert attack.scale_factors.slope == 7


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_compile_is_on_off_or_auto_in_files_and_options(word: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"compile: {word}\n")
    for arguments in (["--compile", word], ["--config", str(file)]):
        config = parse_config(arguments)
        assert config.compile == word
        (tmp_path / "dumped.yaml").write_text(dump_yaml(config.to_dict()))
        assert parse_config(["--config", str(tmp_path / "dumped.yaml")]) == config


def test_the_cheaper_attacks_get_the_settings() -> None:
    common = ["--degradation.num_networks", "1", "--attack.step_ratio", "0.75", "--attack.psnr_range", "[24, 30]"]
    own = ["--attack.steps=2", "--attack.inner_steps=5", "--attack.replays=7", "--attack.share=0.5"]

    def build(method: str, *more: str) -> Attack:
        return parse_config([*common, *own, *more, "--attack.method", method]).attack.build()

    expected = {"step_ratio": 0.75, "psnr_range": (24, 30)}
    assert build("pgd") == PGD(steps=2, **expected)
    assert build("yopo", "--attack.return_iterate=last") == YOPO(
        steps=2, inner_steps=5, return_iterate="last", **expected
    )
    assert build("free") == FreeAT(replays=7, **expected)
    assert build("subset") == SubsetPGD(steps=2, share=0.5, **expected)


TABLE_2 = {
    "classical": Bicubic(),
    "adversarial_noise": AdversarialNoise(steps=5),
    "synthetic": RandomDeviation(),
    "style_shift": StyleShift(steps=5),
    "complete": PGD(steps=5),
    "bsrgan": BSRGAN(),
    "real_esrgan": RealESRGAN(),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_the_rows_of_table_2_go_with_every_configuration(name: str) -> None:
    for whole in ("andnet_compact_x4", "andnet_compact_strong_x4", "andgan_compact_x4"):
        assert preset(f"table2/{name}", whole).attack.mix.noise is None


@pytest.mark.parametrize("name", TABLE_2)
def test_the_rows_of_table_2_change_the_attack_alone(name: str) -> None:
    config, alone = preset(f"table2/{name}", "andnet_x4"), preset("andnet_x4")
    assert config.attack.build() == TABLE_2[name]
    assert config.mixed == 0
    assert (config.train, config.data, config.generator) == (alone.train, alone.data, alone.generator)
    assert preset(f"table2/{name}", "compact_x4").attack.psnr_range == Config().attack.psnr_range


def test_the_oracle_is_the_eighth_row_and_needs_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[2] / "configs" / "table2"
    assert {path.stem for path in folder.glob("*.yaml")} == {*TABLE_2, "oracle"}
    message = refused(["--config", str(folder / "oracle.yaml")], capsys)
    assert "attack.mix.pairs is null; attack.method pairs needs a folder with HR/ and LR/" in message
    config = parse_config(["--config", str(folder / "oracle.yaml"), "--attack.mix.pairs", "somewhere"])
    assert config.mixed == config.train.batch_size


MIX = "--attack.mix"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"{MIX}.share=1"], ["attack.mix.share is 1 of train.batch_size 8", "all of it", "attack.method"]),
        ([f"{MIX}.share=0.05"], ["attack.mix.share is 0.05", "less than half an image"]),
        ([f"{MIX}.share=-0.5"], ["attack.mix.share", "-0.5"]),
        ([f"{MIX}.method=blur"], ["attack.mix.method", ", real_esrgan, ", "blur"]),
        ([f"{MIX}.share=0.5", f"{MIX}.method=pairs"], ["attack.mix.pairs is null; attack.mix.method pairs"]),
        (["--attack.method=pairs"], ["attack.mix.pairs is null; attack.method pairs"]),
        ([f"{MIX}.noise=[9, 5]"], ["attack.mix.noise is [9.0, 5.0]", "low <= high"]),
        ([f"{MIX}.noise=[0, 5]"], ["attack.mix.noise is [0.0, 5.0], and attack.mix.share 0", "must be null"]),
        ([f"{MIX}.noise=[-1, 5]"], ["attack.mix.noise", "-1"]),
        (
            [f"{MIX}.share=0.5", f"{MIX}.method=pairs", f"{MIX}.pairs=x", f"{MIX}.noise=[0, 5]"],
            ["attack.mix.noise is [0.0, 5.0]", "noise of its own", "must be null"],
        ),
        (["--attack.method=free", f"{MIX}.share=0.5"], ["attack.mix.share is 0.5; attack.method free", "must be 0"]),
        (
            ["--attack.method=pairs", f"{MIX}.pairs=x", f"{MIX}.share=0.5"],
            ["attack.mix.share is 0.5; attack.method pairs", "must be 0"],
        ),
        (
            [f"{MIX}.share=0.125", "--degradation.num_networks=2"],
            ["degradation.num_networks is 2", "train.batch_size less attack.mix.share 0.125, 7"],
        ),
        (
            [f"{MIX}.share=0.25", "--degradation.num_networks=1", "--train.micro_batch=4"],
            ["train.micro_batch is 4", "gives every network 6 images"],
        ),
    ],
)
def test_invalid_mixtures_are_refused_by_name(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = " ".join(refused(arguments, capsys).split())
    for word in words:
        assert word in message


def test_a_mixture_leaves_the_rest_to_the_networks() -> None:
    config = parse_config([f"{MIX}.share=0.3", "--degradation.num_networks=batch"])
    assert (config.mixed, config.networks) == (2, 6)


def test_the_paper_s_budget_can_be_configured() -> None:
    assert preset("paper_budget").attack.build() == PGD.paper()


def preset(name: str, *before: str) -> Config:
    """A preset after other configurations, by file names."""
    folder = Path(__file__).parents[2] / "configs"
    return parse_config([item for file in (*before, name) for item in ("--config", str(folder / f"{file}.yaml"))])


FAST = YOPO(steps=1, inner_steps=3, step_ratio=0.5, return_iterate="last")


@pytest.mark.parametrize("before", ["compact_x4", "andnet_x4"])
@pytest.mark.parametrize(("name", "attack"), [("attack_faithful", PGD(steps=5)), ("attack_fast", FAST)])
def test_the_attack_presets_leave_the_rest(name: str, attack: Attack, before: str) -> None:
    config, alone = preset(name, before), preset(before)
    assert config.attack.build() == attack
    networks = "batch" if name == "attack_faithful" else alone.degradation.num_networks
    assert config.degradation == replace(alone.degradation, num_networks=networks)
    assert (config.train, config.data, config.generator) == (alone.train, alone.data, alone.generator)


def test_presets_replace_each_other_and_keep_the_budget() -> None:
    faithful, fast = "attack_faithful", "attack_fast"
    assert preset(faithful, fast).attack.build() == preset(faithful).attack.build()
    assert preset(fast, faithful).attack.build() == preset(fast).attack.build()
    budget = preset("attack_faithful", "paper_budget").attack
    assert budget.build() == PGD.paper()
