"""Train a blind super-resolution model: `python -m andfast.train [--config FILE] [--KEY VALUE ...]`.

Without arguments a small model is trained on scikit-image's photographs in a few minutes on a CPU.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from andfast.data.cache import cache_images
from andfast.data.images import DataError, write_png
from andfast.data.patches import PatchBatches, make_loader
from andfast.files import remove_unfinished, sync, write_torch, written_whole
from andfast.host_memory import keep_freed_memory
from andfast.models import save_discriminator, save_model
from andfast.ops import backends
from andfast.training.best import BEST_FILE, BestModel
from andfast.training.compilation import CompileError
from andfast.training.config import Config, dump_yaml, parse_config
from andfast.training.images import Skipped, find_images
from andfast.training.log import RunLog
from andfast.training.memory import describe_memory, estimate_memory, free_memory, is_out_of_memory, remedies
from andfast.training.readout import DivergedError, Readout
from andfast.training.records import METRICS_FILE, RecordError, lacks_validation
from andfast.training.sheet import sample_sheet
from andfast.training.state import PREVIOUS_FILE, STATE_FILE, load_newest, load_state, make_newest, save_state
from andfast.training.stop import StopSignal
from andfast.training.summary import summarise
from andfast.training.trainer import Trainer
from andfast.training.validation import Validator
from andfast.training.waiting import DataWait
from andfast.training.wandb_run import WANDB_FILE, WandbError, import_wandb
from andfast.upscale import NonFiniteError

BAD_BATCH = "bad_batch.pt"
DISCRIMINATOR_FILE = "discriminator.pth"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun, 3 failed, 128 + n ended by signal n."""
    config = parse_config(arguments)
    try:
        run = Run(config)
    except (ValueError, OSError) as error:  # among them DataError, ModelError, StateError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a cache of images can take long to make, and goes on from where it was
        print("interrupted before the first step", file=sys.stderr)
        return 128 + signal.SIGINT
    return run.train()


class Run:
    """A run directory and all that fills it.

    Everything that can be wrong with the settings, the images and the state to resume is found out here, before
    the first step and before anything is written; but for the cache of images, which is made last.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(config.run_dir)
        if config.train.wandb is not None:
            import_wandb(config.train.wandb)
        self.skipped = Skipped()
        self.images = find_images(config, self.skipped)
        self.trainer = Trainer(config)
        if self.trainer.device.type == "cpu":
            keep_freed_memory()
        network = self.trainer.degradation(1)  # refuses what it cannot be made from
        try:
            backends.select_name("degradation_forward", network.theta_id.to(network.dtype))
        except RuntimeError as error:  # one is forced that is not there
            raise ValueError(error) from error
        # The state in the folder that is gone on from, and the step of the newest one; None: there is none.
        self._own: Path | None = None
        self._saved: int | None = None
        state = self._state_to_resume()
        if state is not None:
            self.trainer.load(state)
        # Whether a stop came before the step gone on from was validated.
        self._owes_validation = state is not None and self._lacks_validation()
        self.best = BestModel(self.folder, _warn)
        self.validate = Validator([image for _, image in self.images.held_out], self.images.pairs, config.scale)
        self.batches = self._batches()
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = estimate_memory(self.trainer), free_memory(self.trainer.device)
        print(
            f"{len(self.images.sources)} images to train on, {len(self.images.held_out)} held out, "
            f"{len(self.images.pairs)} camera pairs; {self.trainer.describe()}; {describe_memory(needed, free)}"
        )
        if free is not None and needed > free:
            print(f"warning: that may be more than there is; it helps {remedies(config)}", file=sys.stderr)

    def _batches(self) -> PatchBatches:
        train, data = self.config.train, self.config.data
        sources = self.images.sources
        if data.cache is not None:
            sources = cache_images(data.cache, sources, data.workers)
        return PatchBatches(
            sources,
            patch=train.patch_size,
            batch=train.batch_size,
            seed=self.config.seed,
            flip=data.flip,
            rotate=data.rotate,
            cache_mib=data.cache_mib,
        )

    def _state_to_resume(self) -> dict[str, Any] | None:
        resume, settings = self.config.resume, self.config.to_dict()
        if resume == "never":
            return None
        if resume == "auto":
            found = load_newest(self.folder, settings, _warn)
            if found is None:
                return None
            path, state = found
            self._own = path
        else:
            path = Path(resume)
            if not path.exists():
                raise ValueError(f"--resume {path}: no such file; give a {STATE_FILE}, 'auto' or 'never'")
            own = [name for name in (self.folder / STATE_FILE, self.folder / PREVIOUS_FILE) if name.exists()]
            self._own = next((name for name in own if name.samefile(path)), None)
            if own and self._own is None:
                raise ValueError(f"--resume {path}: --run_dir {self.folder} holds another run; choose another folder")
            state = load_state(path, settings)
        if state["images"] != self.images.digest():
            _warn(
                f"the images are not those that {path} was trained on; what is held out from now on may have been "
                "trained on before"
            )
        if self._own is not None:
            self._saved = state["step"]
        print(f"resuming {path} at step {state['step']}")
        return state

    def train(self) -> int:
        """Train to the end, or until told to stop; returns the exit status of the command."""
        trainer, train = self.trainer, self.config.train
        if trainer.step >= train.iterations and not self._owes_validation:
            print(f"{self.folder}: all {train.iterations} iterations are done; --resume never starts over")
            return 0
        exhausted = ""
        try:
            with StopSignal() as stop:
                self._begin()
                with closing(RunLog(self.folder, trainer.step, train.wandb, self.config.to_dict())) as log:
                    # Where reading costs nothing, it is not put off.
                    every = train.log_every or (1 if trainer.device.type == "cpu" else 10)
                    readout = Readout(log, every, train.max_bad_steps)
                    self._loop(log, readout, stop)
        except (RecordError, WandbError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # who read what is printed is gone, often by the same Ctrl-C as the one here
            return self._unheard(stop.number or signal.SIGPIPE)
        except DivergedError as error:
            return self._failed(error.step - 1, f"{error}; {self._save_bad_batch(error.step)}")
        except (CompileError, NonFiniteError, DataError, OSError) as error:
            return self._failed(trainer.step, _reason(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            exhausted = str(error).strip().partition("\n")[0] or type(error).__name__
        if exhausted:  # and the error is gone, which held all that the step had computed
            return self._out_of_memory(exhausted)
        how = (
            f"stopped at step {trainer.step} and saved; --resume auto goes on from there\n" if stop.number else "done: "
        )
        print(how + summarise(self.folder, train.batch_size))
        return 128 + stop.number if stop.number else 0

    def _begin(self) -> None:
        """Put the folder in order: what earlier starts left half-done or to be replaced, and the configuration."""
        for folder in (self.folder, self.folder / "samples"):
            remove_unfinished(folder)
        if self._own is not None:
            make_newest(self._own)
        if self.trainer.step == 0:
            self._clear()
        with written_whole(self.folder / "config.yaml") as temporary:
            # How this time began is not for the next time.
            temporary.write_text(dump_yaml(self.config.to_dict() | {"resume": "auto"}))

    def _failed(self, step: int, reason: str) -> int:
        """Say what ended the run, and what is left; returns the exit status."""
        kept = "" if self._saved is None else f"; {self.folder / STATE_FILE} is whole, of step {self._saved}"
        print(f"error: stopped at step {step}: {reason}{kept}", file=sys.stderr)
        return 3

    def _save_bad_batch(self, step: int) -> str:
        """Keep the images of the first update that was left out, to be studied; returns what to say of it."""
        path = self.folder / BAD_BATCH
        hr, lr = (images.cpu() for images in self.trainer.bad_batch)
        try:
            with written_whole(path) as temporary:
                write_torch({"step": step, "hr": hr, "lr": lr}, temporary)
        except OSError as error:
            return f"its images could not be saved: {error}"
        return f"its images are in {path}"

    def _unheard(self, number: int) -> int:
        """Save what there is when nothing can be printed any more; returns the exit status."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        if self.trainer.step != self._saved:
            self._save()
        return 128 + number

    def _out_of_memory(self, reason: str) -> int:
        """Save what there is, if an update did not end half-way, and say what would need less."""
        trainer = self.trainer
        trainer.optimizer.zero_grad()
        if trainer.intact and trainer.step != self._saved:
            try:
                self._save()
            except (MemoryError, RuntimeError, OSError) as error:
                print(f"error: the state of step {trainer.step} could not be saved: {error}", file=sys.stderr)
        return self._failed(trainer.step, f"out of memory ({reason}); it helps {remedies(self.config)}")

    def _loop(self, log: RunLog, readout: Readout, stop: StopSignal) -> None:
        trainer, train = self.trainer, self.config.train
        wait = DataWait()
        pin = trainer.device.type == "cuda"
        loader = make_loader(self.batches, trainer.step, train.iterations, self.config.data.workers, pin)
        bar = tqdm(
            total=train.iterations,
            initial=trainer.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )
        # Closed also when a step raises: workers that still wait to be asked would keep this process from ending.
        with bar, closing(iter(loader)) as batches, closing(readout):
            if self._owes_validation:
                self._validate(log, stop)
            begin = time.perf_counter()
            while trainer.step < train.iterations and not stop.number:
                asked = time.perf_counter()
                patches, failures = next(batches)
                data_wait = time.perf_counter() - asked
                self.skipped.report(failures)
                step = trainer.train_step(patches)
                # From the end of one step to the end of the next: what reading took is the next one's.
                begin, seconds = time.perf_counter(), time.perf_counter() - begin
                wait.add(data_wait, seconds)
                if readout.add(step, seconds=seconds, data_wait=data_wait):
                    rate = train.batch_size / readout.seconds
                    bar.set_postfix_str(f"{readout.last}, {rate:.1f} images/s, data {wait.recent:.0%}", refresh=False)
                bar.update()
                if hint := wait.hint(self.config.data):
                    tqdm.write(hint, file=sys.stderr)
                validates = _due(trainer.step, train.validate_every, train.iterations)
                saves = _due(trainer.step, train.save_every, train.iterations)
                if validates or saves:
                    readout.flush()
                    # What may be diverging is neither judged nor kept.
                    if not readout.last.skipped or trainer.step == train.iterations:
                        if validates:
                            self._validate(log, stop)
                        if saves:
                            self._save()
                    begin = time.perf_counter()
        if stop.number and trainer.step != self._saved:
            self._save()

    def _lacks_validation(self) -> bool:
        """Whether the last step was to be validated and is not."""
        step, train = self.trainer.step, self.config.train
        due = _due(step, train.validate_every, train.iterations)
        return due and lacks_validation(self.folder / METRICS_FILE, step)

    def _validate(self, log: RunLog, stop: StopSignal) -> None:
        """Validate, unless told to stop, which need not wait for it: it is done when the run goes on."""
        step = self.trainer.step
        results = self.validate(self.trainer.ema, stop)
        if results is None:
            return
        # Without, there is only one, of the last model.
        best = self.config.train.validate_every and self.best.offer(self.trainer.ema, step, results)
        log.write({"step": step, "validation": results})
        scores = "; ".join(
            f"{name} LR {found['psnr_y']:.2f} dB (bicubic interpolation {found['bicubic_psnr_y']:.2f})"
            for name, found in results.items()
        )
        tqdm.write(f"step {step}: PSNR-Y on {scores}{', the best so far' if best else ''}")
        sheet = sample_sheet(self.trainer, self.images.held_out)
        write_png(self.folder / "samples" / f"step_{step:07d}.png", sheet)

    def _save(self) -> None:
        """Write the state and the model as they are now."""
        for name in ("model.safetensors", "model.pth"):
            save_model(self.trainer.ema, self.folder / name, {"iterations": self.trainer.step})
        if self.trainer.discrimination is not None:
            save_discriminator(self.trainer.discrimination.module, self.folder / DISCRIMINATOR_FILE)
        sync(self.folder / METRICS_FILE)  # a state never knows more than the lines before it
        save_state(self.folder / STATE_FILE, self.trainer.state() | {"images": self.images.digest()})
        self._saved = self.trainer.step

    def _clear(self) -> None:
        """Remove what an earlier run left here that this one would mix with its own."""
        # The newest state last but one: killed in between, the earlier run is still what it was.
        names = [PREVIOUS_FILE, STATE_FILE, METRICS_FILE, WANDB_FILE, BEST_FILE, BAD_BATCH]
        names += ["model.safetensors", "model.pth", DISCRIMINATOR_FILE]
        found = [*self.folder.glob("samples/step_*.png"), *self.folder.glob("tensorboard/events.*")]
        for path in [*(self.folder / name for name in names), *found]:
            path.unlink(missing_ok=True)
        self._saved = None


def _warn(message: str) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}); make room, and the same command goes on"
    return str(error)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


if __name__ == "__main__":
    sys.exit(main())
