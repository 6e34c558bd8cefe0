"""Train a blind super-resolution model: `python -m andfast.train [--config FILE] [--KEY VALUE ...]`.

Without arguments a small model is trained on scikit-image's photographs in a few minutes on a CPU.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from tqdm import tqdm

from andfast.data.images import DataError, read_image, write_png
from andfast.data.pairs import Pair, find_pairs
from andfast.data.patches import Failure, ImageArray, PatchBatches, Source, make_loader, scan_images
from andfast.data.photographs import held_out_photographs, training_photographs
from andfast.files import written_whole
from andfast.models import save_model
from andfast.training.config import Config, dump_yaml, parse_config
from andfast.training.log import RunLog
from andfast.training.sheet import draw_sheet
from andfast.training.state import STATE_FILE, load_state, save_state
from andfast.training.trainer import DivergedError, Trainer, frozen, step_generator
from andfast.training.validation import Validator, bicubic_upsample, centre_crop, to_array, to_tensor

_SHEET_CROP = 160
_SHEET_ROWS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun, 3 diverged, 128 + n ended by signal n."""
    config = parse_config(arguments)
    try:
        run = Run(config)
    except (ValueError, OSError) as error:  # among them DataError, ModelError, StateError
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run.train()


class Run:
    """A run directory and all that fills it.

    Everything that can be wrong with the settings, the images and the state to resume is found out here, before
    the first step and before anything is written.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(config.run_dir)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"run_dir {self.folder}: not a folder")
        sources, self.held_out, pairs = find_images(config)
        train, data = config.train, config.data
        self.batches = PatchBatches(
            sources,
            patch=train.patch_size,
            batch=train.batch_size,
            seed=config.seed,
            flip=data.flip,
            rotate=data.rotate,
            cache_mib=data.cache_mib,
        )
        self.trainer = Trainer(config)
        state = self._state_to_resume()
        if state is not None:
            self.trainer.load(state)
        self.validate = Validator(self.held_out, pairs, config.scale)
        print(
            f"{len(sources)} images to train on, {len(self.held_out)} held out, {len(pairs)} camera pairs; "
            f"{config.generator.name} x{config.scale} with {parameters(self.trainer.generator):,} parameters on "
            f"{self.trainer.device} in {str(self.trainer.precision).removeprefix('torch.')}"
        )

    def _state_to_resume(self) -> dict | None:
        if self.config.resume == "never":
            return None
        path = self.folder / STATE_FILE if self.config.resume == "auto" else Path(self.config.resume)
        if not path.exists():
            if self.config.resume == "auto":
                return None
            raise ValueError(f"--resume {path}: no such file; give a {STATE_FILE}, 'auto' or 'never'")
        state = load_state(path, self.config.to_dict())
        print(f"resuming {path} at step {state['step']}")
        return state

    def train(self) -> int:
        """Train to the end, or until told to stop; returns the exit status of the command."""
        trainer, train = self.trainer, self.config.train
        if trainer.step >= train.iterations:
            print(f"{self.folder}: all {train.iterations} iterations are done; --resume never starts over")
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if trainer.step == 0:
            self._clear()
        with written_whole(self.folder / "config.yaml") as temporary:
            temporary.write_text(dump_yaml(self.config.to_dict()))
        log = RunLog(self.folder, trainer.step)
        stop = _StopSignal()
        try:
            with stop:
                self._loop(log, stop)
        except (DivergedError, DataError) as error:
            print(f"error: {error}\nthe last saved state is whole: {self.folder / STATE_FILE}", file=sys.stderr)
            return 3
        finally:
            log.close()
        if stop.number:
            print(f"stopped at step {trainer.step} and saved; the same command goes on from there")
            return 128 + stop.number
        print(f"done: {self.folder / 'model.safetensors'}, {self.folder / 'model.pth'}, {self.folder / 'samples'}")
        return 0

    def _loop(self, log: RunLog, stop: _StopSignal) -> None:
        trainer, train = self.trainer, self.config.train
        first = trainer.step
        loader = iter(make_loader(self.batches, first, train.iterations, self.config.data.workers))
        bar = tqdm(
            total=train.iterations,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )
        skipped = 0
        with bar:
            while trainer.step < train.iterations and not stop.number:
                begin = time.perf_counter()
                patches, failures = next(loader)
                data_wait = time.perf_counter() - begin
                skipped += report(failures, skipped)
                result = trainer.train_step(patches)
                seconds = time.perf_counter() - begin
                record = {"step": trainer.step, **asdict(result), "seconds": seconds, "data_wait": data_wait}
                log.write(record)
                gain = result.loss_after_attack / result.loss_before_attack
                bar.set_postfix_str(
                    f"loss {result.loss:.4f}, gain {gain:.2f}, {train.batch_size / seconds:.1f} images/s", refresh=False
                )
                bar.update()
                done = trainer.step == train.iterations
                if done or (train.validate_every and trainer.step % train.validate_every == 0):
                    self._validate(log)
                if done or stop.number or (train.save_every and trainer.step % train.save_every == 0):
                    save_state(self.folder / STATE_FILE, trainer.state())

    def _validate(self, log: RunLog) -> None:
        """Measure and save the generator as it is now."""
        trainer = self.trainer
        results = self.validate(trainer.ema)
        log.write({"step": trainer.step, "validation": results})
        scores = "; ".join(
            f"{name} LR {found['psnr_y']:.2f} dB (bicubic interpolation {found['bicubic_psnr_y']:.2f})"
            for name, found in results.items()
        )
        tqdm.write(f"step {trainer.step}: PSNR-Y on {scores}")
        metadata = {"iterations": trainer.step}
        for name in ("model.safetensors", "model.pth"):
            save_model(trainer.ema, self.folder / name, metadata)
        write_png(self.folder / "samples" / f"step_{trainer.step:07d}.png", self.sample_sheet())

    def sample_sheet(self) -> np.ndarray:
        """Held-out images, what the adversary makes of them within the full budget, and the restorations."""
        trainer, config = self.trainer, self.config
        images = [image for _, image in self.held_out[:_SHEET_ROWS]]
        crop = min(_SHEET_CROP, *(length for image in images for length in image.shape[:2]))
        crop -= crop % config.scale
        images = [centre_crop(image, config.scale, crop) for image in images]
        hr = torch.cat([to_tensor(image) for image in images]).to(trainer.device)
        network = trainer.degradation(len(images))
        random = step_generator(config.seed, 0, trainer.device)
        network.reset_identity((crop, crop), random)
        with frozen(trainer.generator):
            attacked = trainer.attack(network, hr, trainer.objective, random).lr
        clean = trainer.attack.clean(network, hr)
        with torch.no_grad():
            columns = {
                "HR": hr,
                "clean LR": clean,
                "SR of clean LR": trainer.ema(clean),
                "attacked LR": attacked,
                "SR before training on it" if config.train.warmup else "SR, untrained": trainer.before(attacked),
                "SR now": trainer.ema(attacked),
            }
        arrays = {label: [to_array(image) for image in batch] for label, batch in columns.items()}
        bicubic = [bicubic_upsample(image, config.scale) for image in arrays["clean LR"]]
        ordered = [*list(arrays.items())[:2], ("bicubic of clean LR", bicubic), *list(arrays.items())[2:]]
        return draw_sheet(ordered, crop)

    def _clear(self) -> None:
        """Remove what an earlier run left here that this one would mix with its own."""
        for path in [self.folder / STATE_FILE, self.folder / "metrics.jsonl", *self.folder.glob("samples/step_*.png")]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob("tensorboard/events.*"):
            path.unlink()


def find_images(config: Config) -> tuple[list[Source], list[tuple[str, np.ndarray]], list[Pair]]:
    """The images to train on, those to validate on, and the camera-captured pairs.

    Raises:
        DataError: there are too few; the message names the folders.
    """
    data = config.data
    pairs = find_pairs(data.val_pairs, config.scale) if data.val_pairs is not None else []
    if not data.hr:
        return [ImageArray(*image) for image in training_photographs()], held_out_photographs(), pairs
    scan = scan_images([Path(folder) for folder in data.hr], config.train.patch_size)
    report([Failure(str(path), reason) for path, reason in scan.skipped], 0)
    sources = scan.sources
    if data.val_hr:
        kept = scan_images([Path(folder) for folder in data.val_hr], 8 * config.scale).sources
    else:
        count = min(data.held_out, len(sources) - 1)
        if count < 1:
            raise DataError(
                f"{', '.join(data.hr)}: one usable image, but one to validate on is needed too (data.val_hr)"
            )
        # Evenly spread over the sorted names, so that no one folder or series gives them all.
        kept = [sources[(2 * index + 1) * len(sources) // (2 * count)] for index in range(count)]
        sources = [source for source in sources if source not in kept]
    return sources, [(source.name, read_image(source.path)) for source in kept], pairs


def report(failures: Sequence[Failure], before: int) -> int:
    """Name images that had to be skipped, with a count that starts from `before`; returns how many."""
    for number, failure in enumerate(failures, before + 1):
        tqdm.write(f"skipped image {number}: {failure.reason}", file=sys.stderr)
    return len(failures)


def parameters(model: torch.nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


class _StopSignal:
    """SIGINT and SIGTERM inside set `number`, for the step to be finished and saved; a second one acts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> _StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
        tqdm.write("finishing this step, then saving", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
