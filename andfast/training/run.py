"""A training run, from its settings to its last line: settings, images, trainer, directory, loop, end."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import time
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from andfast.data.cache import cache_images
from andfast.data.images import DataError
from andfast.data.patches import PatchBatches, Source, make_loader
from andfast.inference.tiles import NonFiniteError
from andfast.metrics import make_measure
from andfast.models.compilation import CompileError
from andfast.models.own_models import OwnModel, is_own
from andfast.ops import dispatch
from andfast.training.batches import TrainingBatches, make_pair_patches
from andfast.training.checkpoints import BestModel, different, flat
from andfast.training.config import Config
from andfast.training.data_wait import DataWait
from andfast.training.distributed import World
from andfast.training.folder import BAD_BATCH, RunFolder
from andfast.training.images import Skipped, find_images
from andfast.training.logging import RunLog, WandbError, import_wandb
from andfast.training.memory_check import describe_memory, estimate_memory, remedies
from andfast.training.precision import Purpose, automatic_types, with_types
from andfast.training.progress import TrainingBar
from andfast.training.records import (
    METRICS_FILE,
    RunRecordError,
    baseline_title,
    has_baseline,
    lacks_validation,
    lr_name,
    summarise,
)
from andfast.training.samples import sample_sheet
from andfast.training.signals import StopSignal
from andfast.training.step_metrics import DivergedError, StepLogger
from andfast.training.trainer import Trainer
from andfast.training.validation import Validator
from andfast.utils.formatting import counted
from andfast.utils.memory import free_memory, is_out_of_memory, keep_freed_memory
from andfast.utils.rng import batch_positions

_LONGEST_UNSAVED = 300  # seconds

# Settings that may differ between processes: where files are on a machine, and how they are read.
_LOCAL_SETTINGS = {"run_dir", "resume", "data.workers", "data.cache_mib", "data.cache", "loss.vgg"}


class Run:
    """A training run.

    Errors in the settings, the images and the state to resume are raised here, before anything but a cache is written.

    Args:
        config: the settings of the whole run.
        world: its processes; None: there is one.

    Raises:
        ValueError, OSError: the run cannot begin.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self._saved_at = time.perf_counter()
        self.config, self.world = config, world or World()
        self.folder = RunFolder(config, _warn)
        state, types = None, {}
        # Whether the run was stopped between the step of its state and the validation of that step.
        self._validation_pending = False
        with self.world.raise_together():
            if config.train.wandb is not None and self.world.main:
                import_wandb(config.train.wandb)
            # All processes find the same images; later each reads its own.
            self._measures = [make_measure(name, config.scale) for name in config.train.validate_metrics]
            self.skipped = Skipped(self.world.named, verbose=self.world.main)
            self.images = find_images(config, self.skipped)
        self.world.local_rank_first(config.loss.fetch)
        with self.world.raise_together():
            if self.world.main:
                state = self.folder.load_state(self.images.digest())
                types = automatic_types(self.world.device(config.device), state)
        types = self.world.broadcast(types)
        with self.world.raise_together():
            self.trainer = self._make_trainer(types)
            if self.world.main:
                self._claim_folder(state)
            self.best = BestModel(self.folder.path, _warn)
            held_out = [image for _, image in self.images.held_out]
            self.validate = Validator(held_out, self.images.pairs, config.scale, self.world, self._measures)
        self._check_processes_agree()
        state, self.folder.saved_step, self._validation_pending = self.world.broadcast(
            (state, self.folder.saved_step, self._validation_pending)
        )
        if state is not None:
            self.trainer.load(state)
        self.batches = self._make_batches()
        with self.world.raise_together():
            if self.world.main:
                if not self._is_done_at(self.trainer.step):  # a finished run is left unchanged
                    self.folder.lock()
                self._print_introduction()
        self.trainer.connect()
        self.skipped.verbose = True

    def _make_trainer(self, types: dict[Purpose, str]) -> Trainer:
        trainer = Trainer(with_types(self.config.split(self.world.size), types), self.world)
        if trainer.device.type == "cpu":
            keep_freed_memory()
        self._pairs = make_pair_patches(trainer.config, self.images.trained_pairs, self.world)
        bank = trainer.bank
        try:
            dispatch.candidates("degradation_forward", bank.theta_id.device, bank.dtype)
        except RuntimeError as error:  # a backend is forced that is not available
            raise ValueError(error) from error
        return trainer

    def _claim_folder(self, state: dict[str, Any] | None) -> None:
        """Lock the directory of what is resumed before a cache of images is made, which takes long."""
        train = self.config.train
        step = 0 if state is None else state["step"]
        if state is not None and _due(step, train.validate_every, train.iterations):
            self._validation_pending = lacks_validation(self.folder.path / METRICS_FILE, step)
        if self.folder.path.is_dir() and not self._is_done_at(step):
            self.folder.lock()

    def _check_processes_agree(self) -> None:
        """Raise a ValueError, in all processes, if one differs from the main one in settings, images, or types."""
        names = self.images.digest(), [pair.name for pair in self.images.pairs]
        everyone = self.world.gather((flat(self.config.to_dict()), names, self.trainer.computes))
        main_settings, main_names, main_computes = everyone[0]
        for rank, (settings, names, computes) in enumerate(everyone):
            keys = [key for key in different(main_settings, settings) if key not in _LOCAL_SETTINGS]
            if keys:
                lines = "".join(f"\n  {key}: {settings.get(key)}, not {main_settings.get(key)}" for key in keys)
                raise ValueError(f"process {rank} was started with other settings than process 0:{lines}")
            if names != main_names:
                raise ValueError(f"process {rank} finds other images than process 0; all must find the same ones")
            if computes != main_computes:
                raise ValueError(
                    f"process {rank} computes on {computes}, process 0 on {main_computes}; name what all can do"
                )

    def _make_batches(self) -> TrainingBatches:
        config, data, world = self.trainer.config, self.config.data, self.world
        patches = PatchBatches(
            world.local_rank_first(self._cached_sources),
            patch=config.train.patch_size,
            batch=config.train.batch_size,
            seed=config.seed,
            flip=data.flip,
            rotate=data.rotate,
            cache_mib=data.cache_mib,
            rank=world.rank,
            world=world.size,
            mixed=config.mixed,
            weights=data.weights,
            folders=self.images.folders,
        )
        return TrainingBatches(patches, self._pairs, config)

    def _cached_sources(self) -> list[Source]:
        data, sources = self.config.data, self.images.sources
        return sources if data.cache is None else cache_images(data.cache, sources, data.workers)

    def _print_introduction(self) -> None:
        size = self.world.size
        needed, free = self._needed_memory(), free_memory(self.trainer.device)
        bank, device = self.trainer.bank, self.trainer.device
        degradation = dispatch.in_use("degradation_forward", device, bank.dtype)
        generator = dispatch.in_use("conv_act", device, self.trainer.precision)
        print(
            f"{counted(len(self.images.sources), 'image')} to train on, {len(self.images.held_out):,} held out, "
            f"{counted(len(self.images.pairs), 'camera pair')}; {self.trainer.describe()}; "
            f"kernels: degradation {degradation}, generator {generator}; "
            f"{f'{size} processes, each ' if size > 1 else ''}{describe_memory(needed, free)}"
        )
        if free is not None and needed is not None and needed > free:
            print(f"warning: that may not fit; try {remedies(self.config, size)}", file=sys.stderr)
        train = self.config.train
        if train.warmup >= train.iterations and self.config.attack.method != "none":
            print(
                "warning: no update is attacked: "
                f"train.warmup is {train.warmup} of {train.iterations} train.iterations",
                file=sys.stderr,
            )

    def _needed_memory(self) -> int | None:
        """`estimate_memory`; None if a class of the user's own needs values, which tensors there do not have."""
        config = self.config
        try:
            return estimate_memory(self.trainer)
        except Exception:  # whatever the user's code raises
            if config.loss.custom is None and not isinstance(self.trainer.generator, OwnModel):
                raise
            return None

    def _is_done_at(self, step: int) -> bool:
        return step >= self.config.train.iterations and not self._validation_pending

    def train(self) -> int:
        """Train to the end or until a signal; returns the exit status of the command."""
        with closing(self.folder):
            return self._train()

    def _train(self) -> int:
        trainer, train, world = self.trainer, self.config.train, self.world
        if self._is_done_at(trainer.step):
            if world.main:
                print(f"{self.folder.path}: all {train.iterations} iterations are done; --resume never starts over")
            with suppress(RuntimeError):  # another process may have ended already
                world.leave()
            return 0
        exhausted = ""
        try:
            with StopSignal(world.main) as stop:
                with self._open_log() as log:
                    # On a CPU reading results of each step costs nothing.
                    every = train.log_every or (1 if trainer.device.type == "cpu" else 10)
                    stopped = self._loop(log, StepLogger(log, every, train.max_bad_steps), stop)
                world.leave()
        except (RunRecordError, WandbError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # nobody reads what is printed, often because of the same Ctrl-C
            return self._save_silently(stop.number or signal.SIGPIPE)
        except DivergedError as error:  # in all processes
            kept = self._save_bad_batch(error.step)
            return self._fail(error.step - 1, f"{error}; {kept}") if world.main else 3
        except DataError as error:
            self._rescue()
            return self._fail(trainer.step, str(error))
        except (CompileError, NonFiniteError, OSError) as error:
            return self._fail(trainer.step, _reason(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                if world.lost_peer(error):
                    return self._fail(trainer.step, world.peer_lost_message)
                raise
            exhausted = str(error).strip().partition("\n")[0] or type(error).__name__
        if exhausted:  # only here are the error and the step's tensors freed
            trainer.drop_gradients()
            self._rescue()
            reason = f"out of memory ({exhausted}); try {remedies(self.config, world.size)}"
            return self._fail(trainer.step, reason)
        if world.main:
            stop_line = f"stopped at step {trainer.step} and saved; the same command goes on from there\n"
            how = stop_line if stopped else "done: "
            print(how + summarise(self.folder.path, train.batch_size, self.config.scale))
            if not stopped:
                model = str(self.folder.path / "model.safetensors")
                model += f"@{self.config.generator.name}" if is_own(self.config.generator.name) else ""
                print(f"to use it: python -m andfast.upscale PHOTO --output upscaled --model {shlex.quote(model)}")
        return 128 + stopped if stopped else 0

    def _open_log(self) -> AbstractContextManager[RunLog | None]:
        """Prepare the directory and open the log, in the main process alone."""
        if not self.world.main:
            return nullcontext()
        self.folder.begin(self.trainer.step)
        return closing(RunLog(self.folder.path, self.trainer.step, self.config.train.wandb, self.config.to_dict()))

    def _loop(self, log: RunLog | None, logger: StepLogger, stop: StopSignal) -> int:
        """Train; returns the signal that stopped it, in any of the processes, or 0."""
        trainer, train, world = self.trainer, self.config.train, self.world
        wait = DataWait()
        pin = trainer.device.type == "cuda"
        loader = make_loader(self.batches, trainer.step, train.iterations, self.config.data.workers, pin)
        bar = TrainingBar(train.warmup, train.iterations, trainer.step, shown=world.main)
        # The loader is closed also when a step raises, since waiting workers would keep this process from ending. Then
        # the last results are read as well, but not of several processes: they need the others, which may have ended.
        read_at_end = closing(logger) if world.size == 1 else nullcontext()
        with bar, closing(iter(loader)) as batches, read_at_end:
            if self._validation_pending:
                self._validate(log, stop)
            begin = time.perf_counter()
            stopped = world.all_reduce_max(stop.number)
            while not stopped and trainer.step < train.iterations:
                interrupted = False
                wait_begin = time.perf_counter()
                batch, failures = next(batches)
                data_wait = time.perf_counter() - wait_begin
                self.skipped.report(failures)
                step = trainer.train_step(*batch)
                # From the end of one step to the end of the next, so that reading results counts in the next one.
                begin, seconds = time.perf_counter(), time.perf_counter() - begin
                wait.add(data_wait, seconds)
                if logger.add(step, seconds=seconds, data_wait=data_wait):
                    bar.time_left.add(trainer.step, logger.seconds)
                    rate = train.batch_size / logger.seconds
                    bar.set_postfix_str(f"{logger.last}, {rate:.1f} images/s, data {wait.recent:.0%}", refresh=False)
                bar.update()
                if world.main and (hint := wait.hint(self.config.data)):
                    tqdm.write(hint, file=sys.stderr)
                validates = _due(trainer.step, train.validate_every, train.iterations)
                saves = _due(trainer.step, train.save_every, train.iterations) or self._unsaved_for_long()
                if validates or saves:
                    logger.flush()
                    # Weights that may be diverging are neither validated nor saved.
                    if not logger.last.skipped or trainer.step == train.iterations:
                        if validates:
                            interrupted = not self._validate(log, stop)
                        if saves:
                            self._save()
                    begin = time.perf_counter()
                if interrupted or trainer.step % world.stop_check_interval == 0 or trainer.step == train.iterations:
                    stopped = world.all_reduce_max(stop.number)
            logger.flush()
        if stopped and trainer.step != self.folder.saved_step:
            self._save()
        return stopped

    def _validate(self, log: RunLog | None, stop: StopSignal) -> bool:
        """Validate; returns False if a signal interrupted it, in which case the resumed run does it."""
        step = self.trainer.step
        results = self.validate(self.trainer.ema, stop)
        if results is None or log is None:
            return results is not None
        self.folder.check()
        # Without validate_every only the last model is validated.
        best = self.config.train.validate_every and self.best.offer(self.trainer.ema, step, results)
        log.write({"step": step, "validation": results})
        scale = self.config.scale
        digits = {"ssim_y": 4} | {measure.name: measure.digits for measure in self._measures}

        def values(result: dict[str, float], prefix: str) -> str:
            return "".join(f", {result[prefix + name]:.{count}f}" for name, count in digits.items())

        def baseline(name: str, result: dict[str, float]) -> str:
            if not has_baseline(name, scale):
                return ""
            return f" ({baseline_title(scale)} {result['bicubic_psnr_y']:.2f}{values(result, 'bicubic_')})"

        scores = "; ".join(
            f"{lr_name(name, scale)} {result['psnr_y']:.2f} dB{values(result, '')}{baseline(name, result)}"
            for name, result in results.items()
        )
        titles = ", ".join(["PSNR-Y", "SSIM-Y", *(measure.title for measure in self._measures)])
        tqdm.write(f"step {step}: {titles} on {scores}{', the best so far' if best else ''}")
        self.folder.save_samples(step, sample_sheet(self.trainer, self.images.held_out))
        return True

    def _unsaved_for_long(self) -> bool:
        """Whether a kill would lose minutes. Several processes, which may differ in this, go by `save_every` alone."""
        late = time.perf_counter() - self._saved_at > _LONGEST_UNSAVED
        return late and self.config.train.save_every > 0 and self.world.size == 1

    def _save(self) -> None:
        """Save the models and the state; only the main process writes."""
        self._saved_at = time.perf_counter()
        if self.world.main:
            self.folder.save(self.trainer, self.images.digest())
        self.folder.saved_step = self.trainer.step

    def _fail(self, step: int, reason: str) -> int:
        """Print what ended the run and which state is left; returns the exit status."""
        kept = self.folder.describe_state() if self.world.main else ""
        print(f"error: {self.world.named(f'stopped at step {step}: {reason}{kept}')}", file=sys.stderr)
        return 3

    def _rescue(self) -> None:
        """Save the state of a run that failed, if that can be resumed."""
        trainer = self.trainer
        if self.world.main and trainer.can_save and trainer.step != self.folder.saved_step:
            try:
                with StopSignal(verbose=False):  # torchrun sends signals when other processes end
                    self._save()
            except (MemoryError, RuntimeError, OSError) as error:
                print(f"error: the state of step {trainer.step} could not be saved: {error}", file=sys.stderr)

    def _save_silently(self, number: int) -> int:
        """Save when nothing can be printed any more; returns the exit status."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(devnull, stream.fileno())
        if self.trainer.step != self.folder.saved_step:
            self._save()
        return 128 + number

    def _save_bad_batch(self, step: int) -> str:
        """Save the images of the first update that was left out; returns a message for the user."""
        world = self.world
        try:
            parts = world.gather([images.cpu() for images in self.trainer.bad_batch(step - 1)])
            if world.main:
                hr, lr = (self._whole_batch([part[which] for part in parts]) for which in range(2))
                self.folder.save_bad_batch(step, hr, lr)
            world.all_reduce_max(0)  # wait for the main process: torchrun ends it when another one ends
        except OSError as error:
            return f"its images could not be saved: {error}"
        except RuntimeError as error:
            if not world.lost_peer(error):
                raise
            return f"its images could not be gathered: {world.peer_lost_message}"
        return f"its images are in {self.folder.path / BAD_BATCH}"

    def _whole_batch(self, parts: list[Tensor]) -> Tensor:
        """The images of all processes, in the order of a single process."""
        mixed, size = self.trainer.config.mixed, self.world.size
        images = len(parts[0])
        whole = torch.empty(size * images, *parts[0].shape[1:])
        for rank, part in enumerate(parts):
            whole[batch_positions(images, mixed, rank, size)] = part
        return whole


def _warn(message: str) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}); make room, and the same command goes on"
    return str(error)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
