"""Models from elsewhere: other names for the same weights, other architectures, and files that are none."""

import io
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save
from upscaling_models import compact

from andfast.inference.models import find_model, precision_for
from andfast.inference.upscaler import upscale_tensor
from andfast.models import ModelError, RRDBNet, load_model
from andfast.utils import torchvision_operators

torchvision_operators.declare_missing()
spandrel = pytest.importorskip("spandrel")


def rrdbnet(scale=4):
    torch.manual_seed(0)  # spandrel knows no other growth
    return RRDBNet(scale, features=8, blocks=2, growth=32).eval()


# As BSRGAN and the first ESRGAN call their modules, in the papers' own code.
BSRGAN = [
    (r"body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2."),
    (r"conv_body", "trunk_conv"),
    (r"conv_up(\d)", r"upconv\1"),
    (r"conv_hr", "HRconv"),
]
ESRGAN = [
    (r"body\.(\d+)\.rdb(\d)\.(conv\d)\.", r"model.1.sub.\1.RDB\2.\3.0."),
    (r"conv_first", "model.0"),
    (r"conv_body", "model.1.sub.2"),
    (r"conv_up1", "model.3"),
    (r"conv_up2", "model.6"),
    (r"conv_hr", "model.8"),
    (r"conv_last", "model.10"),
]
DIALECTS = {"basicsr": [], "bsrgan": BSRGAN, "esrgan": ESRGAN}
# With a third upsampling the last layers have other numbers.
ESRGAN_X8 = [*ESRGAN[:-2], (r"conv_up3", "model.9"), (r"conv_hr", "model.11"), (r"conv_last", "model.13")]


def renamed(state, rules):
    result = {}
    for key, value in state.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        result[key] = value
    return result


@pytest.mark.parametrize("wrapper", [None, "params_ema", "params", "state_dict", "params-ema"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(tmp_path, dialect, wrapper):
    model = rrdbnet()
    state = renamed(model.state_dict(), DIALECTS[dialect])
    if dialect == "esrgan":
        assert {"model.0.weight", "model.1.sub.1.RDB3.conv5.0.bias", "model.1.sub.2.weight", "model.10.bias"} <= set(
            state
        )
    if dialect == "bsrgan":
        assert {"conv_first.weight", "RRDB_trunk.1.RDB3.conv5.bias", "trunk_conv.weight", "HRconv.bias"} <= set(state)
    torch.save({wrapper: state} if wrapper else state, tmp_path / "m.pth")
    loaded = load_model(tmp_path / "m.pth")
    assert isinstance(loaded, RRDBNet)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_spandrel_takes_these_for_the_same_network(dialect):
    """An independent reader of the dialects agrees with ours."""
    model = rrdbnet()
    other = spandrel.ModelLoader().load_from_state_dict(renamed(model.state_dict(), DIALECTS[dialect]))
    image = torch.rand(1, 3, 11, 9)
    torch.testing.assert_close(other.model(image), model(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("scale", "rules"), [(1, BSRGAN), (2, BSRGAN), (8, BSRGAN), (8, ESRGAN_X8)])
def test_dialects_of_other_scales(tmp_path, scale, rules):
    model = rrdbnet(scale)
    state = renamed(model.state_dict(), rules)
    torch.save(state, tmp_path / "m.pth")
    loaded, other = load_model(tmp_path / "m.pth"), spandrel.ModelLoader().load_from_state_dict(dict(state))
    assert (type(loaded), loaded.scale, other.scale) == (RRDBNet, scale, scale)
    image = torch.rand(1, 3, 11, 9)
    assert torch.equal(loaded(image), model(image))
    torch.testing.assert_close(other.model(image), model(image), rtol=0, atol=1e-5)


def old_esrgan_x1():
    """A network of the first ESRGAN without upsampling, as of many published restoration models."""
    state = renamed(rrdbnet().state_dict(), ESRGAN)
    return {
        re.sub(r"^model\.(8|10)\.", lambda found: f"model.{int(found[1]) - 6}.", key): value
        for key, value in state.items()
        if not key.startswith(("model.3.", "model.6."))
    }


def old_esrgan_x2():
    """A network of the first ESRGAN with one upsampling, which is no `RRDBNet` of ours."""
    state = renamed(rrdbnet().state_dict(), ESRGAN)
    return {
        re.sub(r"^model\.(8|10)\.", lambda found: f"model.{int(found[1]) - 3}.", key): value
        for key, value in state.items()
        if not key.startswith("model.6.")
    }


def span():
    torch.manual_seed(0)
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2).eval()


def swinir():
    torch.manual_seed(0)
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=16, window_size=8, depths=[2], num_heads=[2], embed_dim=16, upscale=2, upsampler="pixelshuffledirect"
    ).eval()


@pytest.mark.parametrize(("made", "scale"), [(old_esrgan_x2, 2), (old_esrgan_x1, 1), (span, 2), (swinir, 2)])
def test_other_architectures_through_spandrel(tmp_path, made, scale):
    state = made().state_dict() if made in (span, swinir) else made()
    torch.save({"params": state}, tmp_path / "m.pth")
    model = find_model(str(tmp_path / "m.pth"))
    assert model.scale == scale
    image = torch.rand(1, 3, 21, 30)
    expected = spandrel.ModelLoader().load_from_state_dict(dict(state)).eval()(image)
    whole = upscale_tensor(model, image, 0)
    torch.testing.assert_close(whole.clamp(0, 1), expected, rtol=0, atol=1e-5)
    large = torch.rand(1, 3, 60, 70)
    error = (upscale_tensor(model, large, 32, None) - upscale_tensor(model, large, 0)).abs().max()
    assert error < 0.01


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": {f"_orig_mod.{key}": value for key, value in state.items()}, "iteration": 5},
        lambda state: {"netG": {f"netG.{key}": value for key, value in state.items()}},
        lambda state: {
            "state_dict": {f"model.{key}": value for key, value in state.items()} | {"vgg.0": torch.ones(3)}
        },
        lambda state: {"params": {key: value * 0 for key, value in state.items()}, "params_ema": state},
    ],
)
@pytest.mark.parametrize("made", [old_esrgan_x2, span])
def test_other_architectures_in_wrappers(tmp_path, made, wrap):
    """Also one whose own names begin with what wraps others: `model.`."""
    state = made() if made is old_esrgan_x2 else made().state_dict()
    torch.save(wrap(state), tmp_path / "m.pth")
    found = find_model(str(tmp_path / "m.pth"))
    assert found.scale == 2
    image = torch.rand(1, 3, 8, 9)
    expected = spandrel.ModelLoader().load_from_state_dict(dict(state)).eval()(image)
    torch.testing.assert_close(found(image).clamp(0, 1), expected, rtol=0, atol=1e-5)


def test_restoration_at_the_same_size(tmp_path):
    torch.manual_seed(0)
    from spandrel.architectures.DnCNN import DnCNN

    torch.save({"params": DnCNN(in_nc=3, out_nc=3, nc=8, nb=17).state_dict()}, tmp_path / "m.pth")
    model = find_model(str(tmp_path / "m.pth"))
    assert model.scale == 1
    assert upscale_tensor(model, torch.rand(1, 3, 12, 11)).shape == (1, 3, 12, 11)


def test_windows_lie_in_tiles_as_in_the_image(tmp_path):
    torch.save(swinir().state_dict(), tmp_path / "m.pth")
    assert find_model(str(tmp_path / "m.pth")).align % 8 == 0


def test_types_that_a_model_does_not_work_in(tmp_path):
    torch.save(span().state_dict(), tmp_path / "m.pth")
    model = find_model(str(tmp_path / "m.pth"))
    model.precisions = {torch.float32}
    assert precision_for(model, "auto") == torch.float32
    with pytest.raises(ValueError, match="a SPAN, does not work in float16; use float32"):
        precision_for(model, "float16")
    assert precision_for(compact(), "float16") == torch.float16


def test_models_that_are_none_for_images(tmp_path):
    torch.manual_seed(0)
    from spandrel.architectures.DnCNN import DnCNN

    torch.save(DnCNN(in_nc=1, out_nc=1, nc=8, nb=17).state_dict(), tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"m\.pth: a DnCNN, which does not turn RGB"):
        find_model(str(tmp_path / "m.pth"))


def test_without_spandrel(tmp_path, monkeypatch):
    torch.save(span().state_dict(), tmp_path / "m.pth")
    find_spec = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "spandrel" else find_spec(name))
    with pytest.raises(ModelError, match=r"m\.pth: an unknown architecture .*: pip install spandrel "):
        find_model(str(tmp_path / "m.pth"))


def test_spandrel_that_cannot_be_imported(tmp_path, monkeypatch):
    torch.save(span().state_dict(), tmp_path / "m.pth")
    (tmp_path / "spandrel.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spandrel")
    with pytest.raises(ModelError, match="spandrel, which knows more, cannot be imported: operator torchvision::nms"):
        find_model(str(tmp_path / "m.pth"))


def test_unknown_to_all(tmp_path):
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"m\.pth: an unknown architecture .*spandrel does not know it"):
        find_model(str(tmp_path / "m.pth"))


# Damaged files


class Bad:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def originals(trap):
    """Model files of all kinds, by suffix, and one that runs code where it is let."""
    model, files = compact(convs=1), []
    for state in (model.state_dict(), renamed(rrdbnet().state_dict(), ESRGAN)):
        for content in (state, {"params_ema": state}):
            for zipped in (True, False):
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
                files.append((".pth", buffer.getvalue()))
    files.append((".safetensors", save(model.state_dict(), {"architecture": "compact"})))
    files.append((".pth", pickle.dumps({"params": Bad(trap)})))
    buffer = io.BytesIO()
    torch.save({"params_ema": {**model.state_dict(), "extra": Bad(trap)}}, buffer)
    files.append((".pt", buffer.getvalue()))
    return files


def mutated(data, suffix, random):
    """A file like this one with something wrong."""
    data = bytearray(data)
    kind = random.integers(6)
    if kind == 0:
        return bytes(data[: random.integers(len(data))])
    if kind == 1:
        for place in random.integers(0, min(len(data), 2000), random.integers(1, 20)):
            data[place] = random.integers(256)
    elif kind == 2:
        for place in random.integers(0, len(data), random.integers(1, 200)):
            data[place] ^= 1 << random.integers(8)
    elif kind == 3:
        begin, end = sorted(random.integers(0, len(data), 2))
        del data[begin:end]
    elif kind == 4:
        place = random.integers(len(data))
        data[place:place] = random.bytes(random.integers(1, 100))
    elif zipfile.is_zipfile(io.BytesIO(data)):  # the weights' bytes are whole, the names are not
        data = data.replace(b"weight", b"wei\xffht"[: random.integers(1, 7)].ljust(6, b"x"))
    else:
        data[:8] = int(random.integers(2**62)).to_bytes(8, "little")
    return bytes(data)


def test_200_damaged_model_files(tmp_path):
    """Each loads, where what is wrong happens to be harmless, or is refused by name; none runs code."""
    random = np.random.default_rng(0)
    trap = tmp_path / "trap"
    files = originals(trap)
    told = []
    for number in range(200):
        suffix, data = files[number % len(files)]
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data if number < len(files) else mutated(data, suffix, random))
        try:
            find_model(str(path))
        except ModelError as error:
            told.append((path.name, str(error)))
        path.unlink()
    assert not trap.exists()
    assert 100 < len(told) < 200
    assert all(name in message for name, message in told)
