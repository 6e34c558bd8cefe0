"""Train a blind super-resolution model: `python -m andfast.train [--config FILE] [--KEY VALUE ...]`.

Without arguments a small model is trained on scikit-image's photographs in a few minutes on a CPU. On several GPUs, or
several machines with them: `torchrun --nproc-per-node GPUS -m andfast.train ...`.
"""

from __future__ import annotations

import io
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout

from andfast.training.config import Config
from andfast.training.distributed import World
from andfast.training.options import parse_config
from andfast.training.run import Run
from andfast.utils.console import console


@console(BrokenPipeError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun, 3 failed, 128 + n ended by signal n."""
    try:
        world = World.from_environment()
        world.join()
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return world.end(_run(arguments, world))
    except BrokenPipeError:  # nobody reads what is printed; during its steps a run saves first
        return world.end(128 + signal.SIGPIPE)
    except BaseException:
        if world.size > 1:
            traceback.print_exc()
            world.end(1)
        raise


def _run(arguments: Sequence[str] | None, world: World) -> int:
    try:
        run = Run(_read_config(arguments, world), world)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:  # among them DataError, ModelError, StateError
        if world.main:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while a cache of images is made, which the next start continues
        if world.main:
            print("interrupted before the first step", file=sys.stderr)
        return 128 + signal.SIGINT
    except RuntimeError as error:
        if not world.lost_peer(error):
            raise
        print(f"error: {world.named(world.peer_lost_message)}", file=sys.stderr)
        return 3
    return run.train()


def _read_config(arguments: Sequence[str] | None, world: World) -> Config:
    """As `parse_config`; of several processes only the main one prints errors."""
    if world.size == 1:
        return parse_config(arguments)
    with world.raise_together():
        printed = io.StringIO()
        try:
            with redirect_stderr(printed), nullcontext() if world.main else redirect_stdout(io.StringIO()):
                return parse_config(arguments)
        except SystemExit as end:
            if not end.code:  # --help
                world.end(0)
            raise ValueError(printed.getvalue().strip()) from end


if __name__ == "__main__":
    sys.exit(main())
