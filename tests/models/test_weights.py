"""Where training programs put the weights in their files: one network in the wrappings of many."""

import datetime
import errno
import functools
import mmap

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from andfast.inference.models import find_model
from andfast.models import (
    Compact,
    ModelError,
    RRDBNet,
    UNetDiscriminatorSN,
    load_discriminator,
    load_model,
    save_model,
)
from andfast.models.weights import read_weights


def rrdbnet():
    return RRDBNet(2, features=4, blocks=2, growth=3)


def compact():
    return Compact(2, features=4, convs=1)


def behind(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def worse(state):
    """Weights of the same network that are not to be taken."""
    return {key: value + 1 for key, value in state.items()}


OTHER = {"layers.0.weight": torch.ones(3, 3), "layers.0.bias": torch.ones(3)}
VGG = {"features.0.weight": torch.ones(64, 3, 3, 3), "features.0.bias": torch.ones(64)}

WRAPPINGS = {
    "none": lambda s: s,
    "BasicSR": lambda s: {"params_ema": s, "params": worse(s)},
    "BasicSR, the other order": lambda s: {"params": worse(s), "params_ema": s},
    "BasicSR without averages": lambda s: {"params": s},
    "BasicSR under DDP": lambda s: {"params": behind("module.", s)},
    "BasicSR, compiled": lambda s: {"params": behind("module._orig_mod.", s)},
    "BSRGAN's _E": lambda s: {"params-ema": s},
    "APISR": lambda s: {"model_state_dict": behind("_orig_mod.", s), "iteration": 5},
    "mmagic": lambda s: {
        "meta": {"epoch": 3, "iter": 400},
        "state_dict": behind("generator.", worse(s)) | behind("generator_ema.", s) | behind("discriminator.", OTHER)
        | behind("perceptual_loss.vgg.vgg_layers.", VGG) | {"step_counter": torch.tensor(7)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
    },
    "mmediting": lambda s: {"state_dict": behind("generator.", s) | behind("pixel_loss.", OTHER), "meta": {}},
    "Lightning": lambda s: {
        "epoch": 1, "pytorch-lightning_version": "2.4.0", "state_dict": behind("model.", s),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}], "hyper_parameters": {"lr": 1e-4, "scale": 2},
    },
    "Lightning, a GAN": lambda s: {
        "state_dict": behind("net_g.", s) | behind("net_d.", OTHER) | behind("vgg.", VGG), "callbacks": {"x": {"n": 1}}
    },
    "Lightning over DDP": lambda s: {"state_dict": behind("netG.module.", s) | behind("netD.module.", OTHER)},
    "capital letters": lambda s: {"G_state_dict": s, "D_state_dict": OTHER},
    "models by name": lambda s: {"generator_model": s, "discriminator_model": OTHER},
    "FSDP within names": lambda s: {
        key.replace("body.0.", "body.0._fsdp_wrapped_module._checkpoint_wrapped_module."): value
        for key, value in s.items()
    },
    "torch.compile in DDP": lambda s: behind("module._orig_mod.", s),
    "DDP in torch.compile": lambda s: behind("_orig_mod.module.", s),
    "compiled block by block": lambda s: {key.replace("body.", "body._orig_mod."): value for key, value in s.items()},
    "ema-pytorch": lambda s: behind("ema_model.", s) | behind("online_model.", worse(s))
    | {"initted": torch.tensor(True), "step": torch.tensor(10)},
    "an averaged copy": lambda s: behind("module.", s) | {"n_averaged": torch.tensor(100)},
    "timm": lambda s: {"state_dict": worse(s), "state_dict_ema": s, "epoch": 2, "arch": "rrdb"},
    "model and ema": lambda s: {"model": worse(s), "ema": {"module": s, "updates": 5}, "optimizer": {"state": {}}},
    "an average without names": lambda s: {"model": s, "ema": {"shadow_params": [torch.ones(2)], "decay": 0.999}},
    "shadow": lambda s: {"ema": {"decay": 0.999, "shadow": s}, "net": worse(s)},
    "traiNNer": lambda s: {"net_g_ema": s, "net_g": worse(s), "net_d": OTHER},
    "StyleGAN's": lambda s: {"g_ema": s, "g": worse(s), "d": OTHER},
    "CycleGAN's": lambda s: {"netG": s, "netD": OTHER},
    "names behind netG.": lambda s: {"netG": behind("netG.", s)},
    "an only key": lambda s: {"whatever": s},
    "an only prefix": lambda s: behind("my.upscaler.", s),
    "with numbers beside": lambda s: {**s, "epoch": 3, "psnr": 31.5, "name": "mine"},
    "nested": lambda s: {"state_dict": {"params": {"model": behind("module.", s)}}, "epoch": 3},
    "float16": lambda s: {key: value.half() for key, value in s.items()},
    "bfloat16": lambda s: {"params": {key: value.bfloat16() for key, value in s.items()}},
} | {  # what it says of nothing else
    key: lambda s, key=key: {key: s, "epoch": 3, "optimizer": {"param_groups": [{"lr": 1.0}]}}
    for key in ("model", "net", "network", "weights", "generator", "G", "gen", "net_g", "state_dict_g", "model_g")
}  # fmt: skip


@pytest.mark.parametrize("build", [rrdbnet, compact])
@pytest.mark.parametrize("title", WRAPPINGS)
def test_the_same_network_in_the_wrappings_of_many(tmp_path, title, build):
    torch.manual_seed(0)
    model = build()
    # Exact in bfloat16 and in float16.
    state = {key: ((1024 * value).round() / 1024).bfloat16().float() for key, value in model.state_dict().items()}
    torch.save(WRAPPINGS[title](state), tmp_path / "m.pth")
    loaded = load_model(tmp_path / "m.pth")
    assert type(loaded) is type(model)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".CKPT"])
def test_suffixes(tmp_path, suffix):
    torch.save({"state_dict": behind("model.", compact().state_dict())}, tmp_path / f"m{suffix}")
    assert isinstance(load_model(tmp_path / f"m{suffix}"), Compact)


def test_prefixes_in_safetensors(tmp_path):
    state = rrdbnet().state_dict()
    save_file(behind("generator.", worse(state)) | behind("generator_ema.", state), tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_discriminator_beside_its_generator(tmp_path):
    model = UNetDiscriminatorSN(features=4)
    torch.save({"netG": rrdbnet().state_dict(), "netD": model.state_dict(), "epoch": 3}, tmp_path / "m.pth")
    assert isinstance(load_model(tmp_path / "m.pth"), RRDBNet)
    loaded = load_discriminator(tmp_path / "m.pth").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: {"netG_A": s, "netG_B": s, "netD_A": OTHER}, ["netG_A and under netG_B"]),
        (lambda s: {"state_dict": behind("student.", s) | behind("teacher.", s)}, ["state_dict.student", "teacher"]),
        (lambda s: {"generator": s, "netG": s}, ["several networks", "generator, netG"]),
        (lambda s: {"state_dict": behind("RRDB.", s) | behind("flow.", OTHER)}, ["under state_dict.RRDB", "beside"]),
    ],
)
def test_which_one_is_meant_is_not_guessed(tmp_path, content, said):
    torch.save(content(compact().state_dict()), tmp_path / "m.pth")
    for load in (load_model, lambda path: find_model(str(path))):
        with pytest.raises(ModelError, match=r"m\.pth: holds ") as caught:
            load(tmp_path / "m.pth")
        assert all(part in str(caught.value) for part in said)


def test_damage_is_named_inside_of_wrappers(tmp_path):
    state = rrdbnet().state_dict()
    del state["body.1.rdb2.conv3.bias"]
    for number, wrap in enumerate((lambda s: {"params": s}, lambda s: behind("model.", s))):
        torch.save(wrap(state), tmp_path / f"{number}.pth")
        with pytest.raises(ModelError, match=r"looks like RRDBNet.*body\.1\.rdb2\.conv3\.bias"):
            load_model(tmp_path / f"{number}.pth")


def test_the_state_of_a_training_without_weights(tmp_path):
    content = {"epoch": 3, "iter": 100, "optimizers": [{"state": {0: {"exp_avg": torch.ones(2)}}}], "schedulers": []}
    torch.save(content, tmp_path / "100.pth")
    with pytest.raises(ModelError, match=r"100\.pth: holds no model weights.* the state of a training"):
        load_model(tmp_path / "100.pth")


class Settings:
    """What programs keep beside weights, of a class of their own."""


class Named(dict):
    """As Lightning's and OmegaConf's settings are."""


class Calling:
    """Calls a function when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        function, path = self.call
        return function, (path, "w") if function is open else (path,)


def test_whole_modules_are_refused_with_what_to_do(tmp_path):
    torch.save(compact(), tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"m\.pth: .*a whole module.*torch\.save\(model\.state_dict\(\), FILE\)"):
        load_model(tmp_path / "m.pth")
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "script.pt")
    with pytest.raises(ModelError, match=r"script\.pt: .*TorchScript.*torch\.save\(model\.state_dict\(\), FILE\)"):
        load_model(tmp_path / "script.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_passed_over_and_never_made(tmp_path, zipped):
    state = compact().state_dict()
    objects = {
        "hyper_parameters": Named(lr=1e-4, settings=Settings(), path=tmp_path),
        "message_hub": {"loss": np.float64(0.5), "history": np.arange(3.0), "type": np.dtype("f4")},
        "callbacks": {Settings: [Settings(), {1, 2}, functools.partial(print, "x"), datetime.timedelta(1)]},
        "amp": torch.float16,
    }
    parameters = {key: torch.nn.Parameter(value) for key, value in state.items()}
    for weights in (state, parameters):
        torch.save({**objects, "state_dict": weights}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
        loaded = load_model(tmp_path / "m.ckpt").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


def run(path):
    path.touch()


@pytest.mark.parametrize("function", [open, run])
def test_what_would_run_when_it_is_read_is_not(tmp_path, function):
    """Functions that only malicious files call are refused, others left out."""
    path = tmp_path / "made"
    torch.save({"params": compact().state_dict(), "more": Calling(function, path)}, tmp_path / "m.pth")
    if function is open:
        with pytest.raises(ModelError, match=r"can run code \(it would call _?io\.open\)"):
            load_model(tmp_path / "m.pth")
    else:
        assert load_model(tmp_path / "m.pth").scale == 2
    assert not path.exists()


def test_the_content_says_of_which_kind_a_file_is(tmp_path):
    state = compact().state_dict()
    save_file(state, tmp_path / "m.pth")
    torch.save(state, tmp_path / "m.safetensors")
    for name in ("m.pth", "m.safetensors"):
        loaded = load_model(tmp_path / name).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    ],
)
def test_what_downloads_leave_in_a_model_s_place(tmp_path, suffix, content, said):
    (tmp_path / f"m{suffix}").write_bytes(content)
    with pytest.raises(ModelError, match=rf"m\{suffix}: {said}"):
        load_model(tmp_path / f"m{suffix}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.to("meta"), "have no values"),
        (lambda value: value.to(torch.complex64), "sparse or complex"),
        (lambda value: value.to_sparse(), "sparse or complex"),
    ],
)
def test_weights_that_are_no_numbers(tmp_path, change, said):
    torch.save({key: change(value) for key, value in compact().state_dict().items()}, tmp_path / "m.pth")
    with pytest.raises(ModelError, match=rf"m\.pth: its weights .*{said}"):
        load_model(tmp_path / "m.pth")


def test_no_memory_map_is_needed(tmp_path, monkeypatch):
    save_model(compact(), tmp_path / "m.safetensors", {"iterations": 3})

    def refuse(*values, **options):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    monkeypatch.setattr(mmap, "mmap", refuse)
    assert load_model(tmp_path / "m.safetensors").scale == 2
    assert read_weights(tmp_path / "m.safetensors")[1]["iterations"] == "3"


def test_dicts_in_dicts_and_dots_in_names_are_the_same(tmp_path):
    state = compact().state_dict()
    wrappers = ("state_dict", "model", "module")
    for depth in range(len(wrappers) + 1):
        inner = behind("".join(f"{name}." for name in wrappers[depth:]), state)
        for name in reversed(wrappers[:depth]):
            inner = {name: inner}
        torch.save(inner, tmp_path / "m.pth")
        loaded = load_model(tmp_path / "m.pth").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
