"""Compiled generators equal plain ones, and compilation is shown."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_trainer import make, patches, watch_attack
from torch import Tensor

from andfast import train
from andfast.models import compilation
from andfast.models.compilation import wants_compile
from andfast.ops import use_backend
from andfast.training.trainer import Trainer


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(autouse=True)
def _fresh(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler without compiled code, before and after, that neither starts processes nor tries instructions."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch._dynamo.reset()
    with torch._inductor.config.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):
        yield
    torch._dynamo.reset()


def gradient(trainer: Trainer) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in trainer.generator.parameters()])


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("generator", ["compact", "rrdbnet"])
def test_three_compiled_steps_are_three_plain_ones(generator: str, caplog: pytest.LogCaptureFixture) -> None:
    """The first is that of the operations' plain references, too."""
    caplog.set_level("INFO", "andfast")
    options = {"generator__name": generator, "generator__features": 16, "generator__depth": 1, "attack__steps": 5}
    options |= {"degradation__channels": 16, "train__batch_size": 2}
    plain, compiled, reference = (make(**options, compile=setting) for setting in ("off", "on", "off"))
    attacks = [watch_attack(trainer) for trainer in (compiled, reference)]
    assert list(compiled.generator.state_dict()) == list(plain.generator.state_dict())
    for seed in range(3):
        right, found = (trainer.train_step(patches(2, seed=seed)).read() for trainer in (plain, compiled))
        if seed == 0:
            with use_backend("reference"):
                exact = reference.train_step(patches(2)).read()
            assert found.loss == pytest.approx(exact.loss, rel=1e-4)
            assert distance(attacks[0][0].delta, attacks[1][0].delta) < 1e-4
            assert distance(gradient(compiled), gradient(reference)) < 1e-4
        assert found.loss == pytest.approx(right.loss, rel=1e-5)
        assert found.loss_before_attack == pytest.approx(right.loss_before_attack, rel=1e-5)
        assert found.loss_after_attack == pytest.approx(right.loss_after_attack, rel=1e-4)
    for one, other in zip(compiled._weights, plain._weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "compiling the generator for the attack (once; later runs find it in the cache) ...",
        "compiled the generator for the attack",
        "compiling the generator for its update (once; later runs find it in the cache) ...",
        "compiled the generator for its update",
    ]


def test_a_missing_compiler_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
    settings = ["--train.batch_size=2", "--train.patch_size=32", "--generator.depth=1", "--generator.features=4"]
    # Not monkeypatch: what it undoes here, it deletes.
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert train.main([*settings, f"--run_dir={tmp_path / 'run'}", "--data.workers=0", "--compile=on"]) == 3
    message = capsys.readouterr().err
    assert "stopped at step 0: compiling the generator for its update failed" in message
    assert "--compile off" in message


def test_auto_compiles_where_it_pays_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: None)
    assert [wants_compile("auto", device) for device in (cpu, cuda)] == [False, True]
    assert wants_compile("on", cpu)
    assert not wants_compile("off", cuda)
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: "ImportError: no Triton")
    with pytest.warns(UserWarning, match="the generator is not compiled, .*: ImportError: no Triton"):
        assert not wants_compile("auto", cuda)
    assert wants_compile("on", cuda)  # which then fails, with the remedy


def test_a_compiler_that_fails_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        problem = compilation.compiler_problem(torch.device("cpu"))
    assert problem is not None
    assert problem.startswith("InductorError: InvalidCxxCompiler")
    torch.compiler.reset()
    assert compilation.compiler_problem(torch.device("cpu")) is None
