"""A training run: its directory and all that fills it, from the first look at the settings to the last line."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from andfast.data.cache import cache_images
from andfast.data.images import DataError, write_png
from andfast.data.patches import PatchBatches, Source, make_loader
from andfast.inference.tiles import NonFiniteError
from andfast.models import save_discriminator, save_model
from andfast.models.compilation import CompileError
from andfast.ops import dispatch
from andfast.training.best import BEST_FILE, BestModel
from andfast.training.checkpoints import (
    PREVIOUS_FILE,
    STATE_FILE,
    different,
    flat,
    load_newest,
    load_state,
    make_newest,
    save_state,
)
from andfast.training.config import Config
from andfast.training.data_wait import DataWait
from andfast.training.distributed import LostError, World
from andfast.training.images import Skipped, find_images
from andfast.training.logging import RunLog
from andfast.training.memory_check import describe_memory, estimate_memory, remedies
from andfast.training.options import dump_yaml
from andfast.training.readout import DivergedError, Readout
from andfast.training.records import METRICS_FILE, RunRecordError, lacks_validation
from andfast.training.samples import sample_sheet
from andfast.training.signals import StopSignal
from andfast.training.summary import summarise
from andfast.training.trainer import Trainer
from andfast.training.validation import Validator
from andfast.training.wandb_run import WANDB_FILE, WandbError, import_wandb
from andfast.utils.files import make_folder, remove_unfinished, sync, write_text, write_torch, written_whole
from andfast.utils.locks import locked
from andfast.utils.memory import free_memory, is_out_of_memory, keep_freed_memory
from andfast.utils.rng import own_places

BAD_BATCH = "bad_batch.pt"
DISCRIMINATOR_FILE = "discriminator.pth"

# What may be another setting in each process: where things lie on its machine, and how they are read.
_PRIVATE = {"run_dir", "resume", "data.workers", "data.cache_mib", "data.cache", "loss.vgg"}


class Run:
    """A run directory and all that fills it.

    Everything that can be wrong with the settings, the images and the state to resume is found out here, before
    the first step and before anything is written; but for the cache of images, which is made last.

    Of several processes the main one has the directory, and tells of everything; the others need not see it.

    Args:
        config: the settings of the whole run.
        world: its processes; None: there is one.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.config, self.world = config, world or World()
        self.folder = Path(config.run_dir)
        _have_temporary_folder(self.folder)
        # Of the directory, by the main process, as long as the run lasts.
        self._lock = ExitStack()
        self._holds = False
        # The state in the folder that is gone on from, and the step of the newest one; None: there is none.
        self._own: Path | None = None
        self._saved: int | None = None
        state, owes_validation = None, False
        with self.world.together():
            if config.train.wandb is not None and self.world.main:
                import_wandb(config.train.wandb)
            # All find the same ones.
            self.skipped = Skipped(self.world.named, tells=self.world.main)
            self.images = find_images(config, self.skipped)
        self.world.in_turns(config.loss.fetch)
        with self.world.together():
            self.trainer = Trainer(config.split(self.world.size), self.world)
            if self.trainer.device.type == "cpu":
                keep_freed_memory()
            network = self.trainer.degradation(1)  # refuses what it cannot be made from
            try:
                dispatch.select_name("degradation_forward", network.theta_id.to(network.dtype))
            except RuntimeError as error:  # one is forced that is not there
                raise ValueError(error) from error
            if self.world.main:
                self._seen = self._last_saved()
                state = self._state_to_resume()
                owes_validation = state is not None and self._lacks_validation(state["step"])
                finished = state is not None and state["step"] >= config.train.iterations and not owes_validation
                if self.folder.is_dir() and not finished:  # before a cache is made, which takes long
                    self._take_folder()
            self.best = BestModel(self.folder, _warn)
            held_out = [image for _, image in self.images.held_out]
            self.validate = Validator(held_out, self.images.pairs, config.scale, self.world)
        self._check_alike()
        # Whether a stop came before the step gone on from was validated.
        state, self._saved, self._owes_validation = self.world.broadcast((state, self._saved, owes_validation))
        if state is not None:
            self.trainer.load(state)
        self.batches = self._batches()
        with self.world.together():
            if self.world.main:
                self._introduce()
        self.trainer.connect()
        # From now on images are each process's own.
        self.skipped.tells = True

    def _take_folder(self) -> None:
        """Keep the directory for this run.

        Raises:
            ValueError: another run has it, or has just had it.
            OSError: it cannot be written.
        """
        make_folder(self.folder)
        self._lock.enter_context(locked(self.folder))
        self._holds = True
        if self._last_saved() != self._seen:
            raise ValueError(f"{self.folder}: another run has just saved here; give the command again")

    def _last_saved(self) -> tuple[int, int] | None:
        """What changes whenever a state is saved in the directory."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(self.folder / STATE_FILE)
            return found.st_ino, found.st_mtime_ns
        return None

    @property
    def _is_done(self) -> bool:
        return self.trainer.step >= self.config.train.iterations and not self._owes_validation

    def _introduce(self) -> None:
        if not self._holds and not self._is_done:  # a finished run is left as it is
            self._take_folder()
        size = self.world.size
        needed, free = estimate_memory(self.trainer), free_memory(self.trainer.device)
        print(
            f"{len(self.images.sources)} images to train on, {len(self.images.held_out)} held out, "
            f"{len(self.images.pairs)} camera pairs; {self.trainer.describe()}; "
            f"{f'{size} processes, each ' if size > 1 else ''}{describe_memory(needed, free)}"
        )
        if free is not None and needed > free:
            print(f"warning: that may be more than there is; it helps {remedies(self.config, size)}", file=sys.stderr)

    def _check_alike(self) -> None:
        """Refuse processes that were started otherwise than the main one, find other images, or compute in other types.

        Raises:
            ValueError: in all of them.
        """
        images = self.images.digest(), [pair.name for pair in self.images.pairs]
        main, *others = self.world.gather((flat(self.config.to_dict()), images, self.trainer.computes))
        for rank, (settings, images, computes) in enumerate(others, start=1):
            keys = [key for key in different(main[0], settings) if key not in _PRIVATE]
            if keys:
                found = "".join(f"\n  {key}: {settings.get(key)}, not {main[0].get(key)}" for key in keys)
                raise ValueError(f"process {rank} was started with other settings than process 0:{found}")
            if images != main[1]:
                raise ValueError(f"process {rank} finds other images than process 0; all must see the same ones")
            if computes != main[2]:
                raise ValueError(f"process {rank} computes on {computes}, process 0 on {main[2]}; name what all can do")

    def _batches(self) -> PatchBatches:
        config, data, world = self.trainer.config, self.config.data, self.world
        return PatchBatches(
            world.in_turns(self._sources),
            patch=config.train.patch_size,
            batch=config.train.batch_size,
            seed=config.seed,
            flip=data.flip,
            rotate=data.rotate,
            cache_mib=data.cache_mib,
            rank=world.rank,
            world=world.size,
            mixed=config.mixed,
        )

    def _sources(self) -> list[Source]:
        """The images to train on, in their cache if there is to be one, which is made now."""
        data, sources = self.config.data, self.images.sources
        return sources if data.cache is None else cache_images(data.cache, sources, data.workers)

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
        with self._lock:
            return self._train()

    def _train(self) -> int:
        trainer, train, world = self.trainer, self.config.train, self.world
        if self._is_done:
            if world.main:
                print(f"{self.folder}: all {train.iterations} iterations are done; --resume never starts over")
            with suppress(LostError):  # nothing is left to be done
                world.leave()
            return 0
        exhausted = ""
        try:
            with StopSignal(world.main) as stop:
                with self._begin() as log:
                    # Where reading costs nothing, it is not put off.
                    every = train.log_every or (1 if trainer.device.type == "cpu" else 10)
                    stopped = self._loop(log, Readout(log, every, train.max_bad_steps), stop)
                world.leave()
        except (RunRecordError, WandbError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # who read what is printed is gone, often by the same Ctrl-C as the one here
            return self._unheard(stop.number or signal.SIGPIPE)
        except DivergedError as error:  # in all processes
            kept = self._save_bad_batch(error.step)
            return self._failed(error.step - 1, f"{error}; {kept}") if world.main else 3
        except DataError as error:
            self._rescue()
            return self._failed(trainer.step, str(error))
        except (CompileError, NonFiniteError, OSError) as error:
            return self._failed(trainer.step, _reason(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                if world.is_broken():
                    return self._failed(trainer.step, world.epitaph)
                raise
            exhausted = str(error).strip().partition("\n")[0] or type(error).__name__
        if exhausted:  # and the error is gone, which held all that the step had computed
            return self._out_of_memory(exhausted)
        if world.main:
            how = (
                f"stopped at step {trainer.step} and saved; --resume auto goes on from there\n" if stopped else "done: "
            )
            print(how + summarise(self.folder, train.batch_size))
        return 128 + stopped if stopped else 0

    def _begin(self) -> AbstractContextManager[RunLog | None]:
        """Put the folder in order: what earlier starts left half-done or to be replaced, and the configuration.

        Returns:
            The log, to be closed; None in all processes but the main one.
        """
        if not self.world.main:
            return nullcontext()
        for folder in (self.folder, self.folder / "samples"):
            remove_unfinished(folder)
        if self._own is not None:
            make_newest(self._own)
        if self.trainer.step == 0:
            self._clear()
        # How this time began is not for the next time.
        write_text(self.folder / "config.yaml", dump_yaml(self.config.to_dict() | {"resume": "auto"}))
        return closing(RunLog(self.folder, self.trainer.step, self.config.train.wandb, self.config.to_dict()))

    def _failed(self, step: int, reason: str) -> int:
        """Say what ended the run and, in the process that knows, what is left; returns the exit status."""
        knows = self.world.main and self._saved is not None and (self.folder / STATE_FILE).exists()
        kept = f"; {self.folder / STATE_FILE} is whole, of step {self._saved}" if knows else ""
        print(f"error: {self.world.named(f'stopped at step {step}: {reason}{kept}')}", file=sys.stderr)
        return 3

    def _save_bad_batch(self, step: int) -> str:
        """Keep the images of the first update that was left out, to be studied; returns what to say of it."""
        path, world = self.folder / BAD_BATCH, self.world
        try:
            parts = world.gather([images.cpu() for images in self.trainer.bad_batch(step - 1)])
            if world.main:
                hr, lr = (self._joined([part[which] for part in parts]) for which in range(2))
                with written_whole(path) as temporary:
                    write_torch({"step": step, "hr": hr, "lr": lr}, temporary)
            world.agree(0)  # the end of another has this one ended, too, by who started both
        except OSError as error:
            return f"its images could not be saved: {error}"
        except RuntimeError:
            if not world.is_broken():
                raise
            return f"its images could not be gathered: {world.epitaph}"
        return f"its images are in {path}"

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """The whole batch of all processes' images, in the order in which one would have it."""
        mixed, size = self.trainer.config.mixed, self.world.size
        images = len(parts[0])
        places = [own_places(images, mixed, rank, size) for rank in range(size)]
        whole = torch.empty(size * images, *parts[0].shape[1:])
        for own, part in zip(places, parts, strict=True):
            whole[own] = part
        return whole

    def _unheard(self, number: int) -> int:
        """Save what there is when nothing can be printed any more; returns the exit status."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        if self.trainer.step != self._saved:
            self._save()
        return 128 + number

    def _out_of_memory(self, reason: str) -> int:
        """Save what there is, and say what would need less."""
        self.trainer.drop_gradients()
        self._rescue()
        return self._failed(
            self.trainer.step, f"out of memory ({reason}); it helps {remedies(self.config, self.world.size)}"
        )

    def _rescue(self) -> None:
        """Save the state of a run that cannot go on, if an update did not end half-way."""
        trainer = self.trainer
        if not self.world.main:
            self.world.is_broken()  # time for the main one to save, should it be there as well
        elif trainer.intact and trainer.step != self._saved:
            try:
                with StopSignal(tells=False):  # the others' end may have this one told to stop
                    self._save()
            except (MemoryError, RuntimeError, OSError) as error:
                print(f"error: the state of step {trainer.step} could not be saved: {error}", file=sys.stderr)

    def _loop(self, log: RunLog | None, readout: Readout, stop: StopSignal) -> int:
        """Train; returns the signal that stopped it, in whichever process it came, or 0."""
        trainer, train, world = self.trainer, self.config.train, self.world
        wait = DataWait()
        pin = trainer.device.type == "cuda"
        loader = make_loader(self.batches, trainer.step, train.iterations, self.config.data.workers, pin)
        bar = tqdm(
            total=train.iterations,
            initial=trainer.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,
            disable=not world.main,
        )
        # Closed also when a step raises: workers that still wait to be asked would keep this process from ending. What
        # was not read yet is read then, but not of several processes: the others may not be there to compute it with.
        at_last = closing(readout) if world.size == 1 else nullcontext()
        with bar, closing(iter(loader)) as batches, at_last:
            if self._owes_validation:
                self._validate(log, stop)
            begin = time.perf_counter()
            stopped = world.agree(stop.number)
            while not stopped and trainer.step < train.iterations:
                broken_off = False
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
                if world.main and (hint := wait.hint(self.config.data)):
                    tqdm.write(hint, file=sys.stderr)
                validates = _due(trainer.step, train.validate_every, train.iterations)
                saves = _due(trainer.step, train.save_every, train.iterations)
                if validates or saves:
                    readout.flush()
                    # What may be diverging is neither judged nor kept.
                    if not readout.last.skipped or trainer.step == train.iterations:
                        if validates:
                            broken_off = not self._validate(log, stop)
                        if saves:
                            self._save()
                    begin = time.perf_counter()
                if broken_off or trainer.step % world.patience == 0 or trainer.step == train.iterations:
                    stopped = world.agree(stop.number)
            readout.flush()
        if stopped and trainer.step != self._saved:
            self._save()
        return stopped

    def _lacks_validation(self, step: int) -> bool:
        """Whether the last step was to be validated and is not."""
        train = self.config.train
        due = _due(step, train.validate_every, train.iterations)
        return due and lacks_validation(self.folder / METRICS_FILE, step)

    def _validate(self, log: RunLog | None, stop: StopSignal) -> bool:
        """Validate, unless told to stop, which need not wait for it: it is done when the run goes on.

        Returns whether it was.
        """
        step = self.trainer.step
        results = self.validate(self.trainer.ema, stop)
        if results is None or log is None:
            return results is not None
        self._check_folder()
        # Without, there is only one, of the last model.
        best = self.config.train.validate_every and self.best.offer(self.trainer.ema, step, results)
        log.write({"step": step, "validation": results})
        scores = "; ".join(
            f"{name} LR {found['psnr_y']:.2f} dB, {found['ssim_y']:.4f} (bicubic interpolation "
            f"{found['bicubic_psnr_y']:.2f}, {found['bicubic_ssim_y']:.4f})"
            for name, found in results.items()
        )
        tqdm.write(f"step {step}: PSNR-Y, SSIM-Y on {scores}{', the best so far' if best else ''}")
        sheet = sample_sheet(self.trainer, self.images.held_out)
        write_png(self.folder / "samples" / f"step_{step:07d}.png", sheet)
        return True

    def _save(self) -> None:
        """Write the state and the model as they are now; the main process does."""
        if self.world.main:
            self._write()
        self._saved = self.trainer.step

    def _check_folder(self) -> None:
        """Refuse to write parts of a run into a folder made anew."""
        if not (self.folder / METRICS_FILE).exists():
            raise FileNotFoundError(f"{self.folder}: the run's folder is gone, or its {METRICS_FILE}; not saved")

    def _write(self) -> None:
        self._check_folder()
        for name in ("model.safetensors", "model.pth"):
            save_model(self.trainer.ema, self.folder / name, {"iterations": self.trainer.step})
        if self.trainer.discrimination is not None:
            save_discriminator(self.trainer.discrimination.module, self.folder / DISCRIMINATOR_FILE)
        sync(self.folder / METRICS_FILE)  # a state never knows more than the lines before it
        run = {"config": self.config.to_dict(), "images": self.images.digest()}
        save_state(self.folder / STATE_FILE, self.trainer.state() | run)

    def _clear(self) -> None:
        """Remove what an earlier run left here that this one would mix with its own."""
        # The newest state last but one: killed in between, the earlier run is still what it was.
        names = [PREVIOUS_FILE, STATE_FILE, METRICS_FILE, WANDB_FILE, BEST_FILE, BAD_BATCH]
        names += ["model.safetensors", "model.pth", DISCRIMINATOR_FILE]
        found = [*self.folder.glob("samples/step_*.png"), *self.folder.glob("tensorboard/events.*")]
        for path in [*(self.folder / name for name in names), *found]:
            path.unlink(missing_ok=True)
        self._saved = None


def _have_temporary_folder(run_dir: Path) -> None:
    """Where no folder for temporary files can be written, have them in the run's: torch's optimisers ask for one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(run_dir.absolute())


def _warn(message: str) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}); make room, and the same command goes on"
    return str(error)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
