"""Model files: what is written is read again, here and by others, and what is no model is refused."""

import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from andfast.models import Compact, ModelError, RRDBNet, load_model, save_model
from andfast.utils.torchvision_operators import declare_missing

# Not the defaults, and no two alike, so that none can be taken for another.
RRDB = {"features": 12, "blocks": 3, "growth": 5}
MODELS = {
    "rrdbnet-x8": lambda: RRDBNet(8, **RRDB),
    "rrdbnet-x4": lambda: RRDBNet(4, **RRDB),
    "rrdbnet-x2": lambda: RRDBNet(2, **RRDB),
    "rrdbnet-x1": lambda: RRDBNet(1, **RRDB),
    "compact-x8": lambda: Compact(8, features=7, convs=1),
    "compact-x4": lambda: Compact(4, features=7, convs=2),
    "compact-x3": lambda: Compact(3, features=7, convs=0),
    "compact-x1": lambda: Compact(1, features=7, convs=3),
    "compact-relu": lambda: Compact(2, features=7, convs=2, activation="relu"),
    "compact-leakyrelu": lambda: Compact(2, features=7, convs=2, activation="leakyrelu"),
}


@pytest.fixture
def compact():
    torch.manual_seed(0)
    return Compact(2, features=4, convs=1)


@pytest.fixture(scope="module")
def spandrel():
    declare_missing()
    import spandrel

    return spandrel


def assert_same_model(loaded, model):
    assert type(loaded) is type(model)
    assert loaded.scale == model.scale
    image = torch.rand(1, 3, 6, 5)
    assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".PTH"])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip(tmp_path, name, suffix):
    torch.manual_seed(1)
    model = MODELS[name]()
    save_model(model, tmp_path / f"model{suffix}")
    loaded = load_model(str(tmp_path / f"model{suffix}"))
    assert_same_model(loaded, model)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]


def test_files_hold_what_others_expect(tmp_path, compact):
    model = compact.to(torch.float16).to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "m.safetensors", {"updates": 7})
    save_model(model, tmp_path / "m.pth", {"updates": 7})
    flat = load_file(tmp_path / "m.safetensors")
    wrapped = torch.load(tmp_path / "m.pth", weights_only=True)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata == wrapped["metadata"]
    assert metadata.items() >= {"architecture": "compact", "scale": "2", "updates": "7"}.items()
    assert metadata["andfast"]
    for state in (flat, wrapped["params_ema"]):
        assert list(state) == list(model.state_dict()) or set(state) == set(model.state_dict())
        for key, value in state.items():
            assert value.dtype == torch.float32, key
            assert value.is_contiguous(), key
            assert torch.equal(value, model.state_dict()[key].float()), key


def test_saving_is_a_copy(tmp_path, compact):
    """Training goes on after a save; the file and a loaded model must not follow, nor the model its file."""
    save_model(compact, tmp_path / "m.pth")
    expected = compact.body[0].weight.detach().clone()
    with torch.no_grad():
        compact.body[0].weight.zero_()
    assert torch.equal(load_model(tmp_path / "m.pth").body[0].weight, expected)


def test_wrapped_modules_are_saved_without_the_wrapper(tmp_path, compact):
    wrapped = torch.nn.Module()
    wrapped.module = torch.compile(compact, backend="eager")
    for model in (torch.compile(compact, backend="eager"), wrapped):
        save_model(model, tmp_path / "m.safetensors")
        assert_same_model(load_model(tmp_path / "m.safetensors"), compact)


def test_model_compiled_block_by_block(tmp_path):
    model = RRDBNet(4, features=4, blocks=2, growth=2)
    expected = set(model.state_dict())
    for i, block in enumerate(model.body):
        model.body[i] = torch.compile(block, backend="eager")
    save_model(model, tmp_path / "m.safetensors")
    assert set(load_file(tmp_path / "m.safetensors")) == expected


def test_device(tmp_path, compact):
    save_model(compact, tmp_path / "m.pth")
    assert load_model(tmp_path / "m.pth", "meta").body[0].weight.device.type == "meta"


def refused(path, *said):
    with pytest.raises(ModelError) as caught:
        load_model(path)
    for part in (str(path), *said):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"m\.pth: no such file"):
        load_model(tmp_path / "m.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_model(tmp_path / "folder.pth")


def test_wrong_suffix(tmp_path, compact):
    (tmp_path / "m.onnx").write_bytes(b"x")
    refused(tmp_path / "m.onnx", ".safetensors, .pth, .pt, .ckpt or .bin")
    with pytest.raises(ValueError, match=r"m\.onnx: a model file ends in \.safetensors, \.pth or \.pt"):
        save_model(compact, tmp_path / "m.onnx")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"no model", b"\x80\x02", b"PK\x03\x04 cut"])
def test_foreign_bytes(tmp_path, suffix, content):
    (tmp_path / f"m{suffix}").write_bytes(content)
    refused(tmp_path / f"m{suffix}", "truncated")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated(tmp_path, compact, suffix, part):
    path = tmp_path / f"m{suffix}"
    save_model(compact, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    refused(path, "truncated")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickled_code_is_not_run(tmp_path, compact, writer):
    trace = tmp_path / "trace"
    writer({"params": compact.state_dict(), "more": Evil(str(trace))}, tmp_path / "m.pth")
    refused(tmp_path / "m.pth", "run code")
    assert not trace.exists()


HOLDS_ITSELF = {"epoch": 3}
HOLDS_ITSELF["params"] = HOLDS_ITSELF


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"params": {}}, {"epoch": 3}, {1: torch.rand(1)}, torch.rand(3), HOLDS_ITSELF]
)
def test_no_weights(tmp_path, content):
    torch.save(content, tmp_path / "m.pth")
    refused(tmp_path / "m.pth", "holds no model weights", "params_ema")


def test_unknown_architecture(tmp_path):
    save_file({"layers.0.attn.qkv.weight": torch.rand(3, 3)}, tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", "layers.0.attn.qkv.weight", "RRDBNet", "Compact")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (RRDBNet(4, 1, 1, features=4, blocks=1, growth=2), "RRDBNet with 1 input and 1 output"),
        (RRDBNet(4, 4, 3, features=4, blocks=1, growth=2), "RRDBNet with 4 input"),
        (RRDBNet(4, 3, 1, features=4, blocks=1, growth=2), "1 output"),
        (Compact(2, 1, 3, features=4, convs=1), "Compact with 1 input"),
        (Compact(2, 1, 1, features=4, convs=1), "Compact with 1 input and 4 last"),
    ],
)
def test_not_rgb_to_rgb(tmp_path, model, said):
    save_model(model, tmp_path / "m.pth")
    refused(tmp_path / "m.pth", said, "RGB to RGB")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("body.1.rdb2.conv3.bias"), "body.1.rdb2.conv3.bias"),
        (lambda state: state.pop("conv_last.weight"), "conv_last.weight"),
        (lambda state: state.update(extra=torch.rand(1)), "extra"),
        (lambda state: state.update({"conv_hr.bias": torch.rand(5)}), "conv_hr.bias"),
        (lambda state: state.update({"conv_first.weight": torch.rand(4)}), "convolutional"),
        (lambda state: state.update({"conv_last.weight": torch.rand(())}), "convolutional"),
        (lambda state: state.update({"conv_first.weight": torch.rand(0, 3, 3, 3)}), "at least one"),
        (
            lambda state: state.update({"body.999999999.rdb1.conv1.weight": torch.rand(2, 4, 3, 3)}),
            "blocks=3",
        ),
        (lambda state: state.update({"conv_hr.bias": torch.zeros(4, dtype=torch.int8)}), "quantised"),
    ],
)
def test_damaged_rrdbnet(tmp_path, change, said):
    state = RRDBNet(4, features=4, blocks=2, growth=2).state_dict()
    change(state)
    torch.save(state, tmp_path / "m.pth")
    refused(tmp_path / "m.pth", said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("body.2.weight"), "body."),
        (lambda state: state.pop("body.4.bias"), "body.4.bias"),
        (lambda state: [state.pop(key) for key in list(state) if key != "body.0.weight"], "Compact"),
        (lambda state: state.update({"body.4.weight": torch.rand(13, 4, 3, 3)}), "scale squared"),
        (lambda state: state.update({"body.999999999.weight": torch.rand(12, 4, 3, 3)}), "convs=2"),
    ],
)
def test_damaged_compact(tmp_path, compact, change, said):
    state = compact.state_dict()
    change(state)
    torch.save(state, tmp_path / "m.pth")
    refused(tmp_path / "m.pth", said)


def test_activation_that_the_weights_do_not_tell(tmp_path):
    state = Compact(2, features=4, convs=1, activation="relu").state_dict()
    torch.save({"params": state}, tmp_path / "m.pth")
    refused(tmp_path / "m.pth", "relu or leakyrelu", "save_model")


def test_only_generators_are_saved(tmp_path):
    with pytest.raises(TypeError, match="rrdbnet, compact"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: RRDBNet(4, features=16, blocks=2),  # spandrel takes a growth of 32 for granted
        lambda: RRDBNet(2, features=16, blocks=2),
        lambda: RRDBNet(1, features=16, blocks=2),
        lambda: RRDBNet(8, features=16, blocks=2),
        lambda: Compact(4, features=16, convs=3),
        lambda: Compact(1, features=16, convs=3),
        lambda: Compact(8, features=16, convs=3),
    ],
    ids=["rrdbnet-x4", "rrdbnet-x2", "rrdbnet-x1", "rrdbnet-x8", "compact-x4", "compact-x1", "compact-x8"],
)
def test_spandrel_runs_our_files(tmp_path, spandrel, build, suffix):
    torch.manual_seed(2)
    model = build().eval()
    with torch.no_grad():  # as if trained: slopes, biases and the last convolution away from where they start
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / f"model{suffix}"
    save_model(model, path)
    theirs = spandrel.ModelLoader().load_from_file(path)
    assert theirs.architecture.id == ("ESRGAN" if isinstance(model, RRDBNet) else "Compact")
    assert (theirs.scale, theirs.input_channels, theirs.output_channels) == (model.scale, 3, 3)
    for size in ((16, 24), (13, 10)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            ours = model(image)
            torch.testing.assert_close(theirs.model.eval()(image), ours, rtol=1e-4, atol=1e-5)
        assert ours.std() > 0.02
