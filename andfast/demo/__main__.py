"""Try andfast in a browser: `python -m andfast.demo`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from socket import socket

from jsonargparse import Namespace

from andfast.demo.models import Offered, load_offered
from andfast.utils.command_line import UsageError, add_upscaling, make_parser, one_line, whole
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.formatting import counted
from andfast.utils.optional import NOT_INSTALLED, install_command, problem_of

# What most cameras take at most.
_MAX_PIXELS = 64_000_000


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = make_parser(
        "andfast.demo",
        description="A page to upscale and to attack images in a browser. This machine serves it, to itself only "
        "unless --host says otherwise; nothing is sent anywhere else. More: docs/demo.md.",
        epilog="Exit status: 0 after Ctrl-C, 2 if the page could not be opened.",
    )
    add = parser.add_argument
    add(
        "--model", nargs="+", default=[], metavar="FILE",
        help="models to offer beside those that come with andfast: files, TITLE=FILE, or folders, searched recursively",
    )  # fmt: skip
    add(
        "--host", default="127.0.0.1",
        help="address to serve at; 0.0.0.0 lets other machines in, whoever uses them (default: %(default)s)",
    )  # fmt: skip
    add("--port", type=whole(0, 65535), default=7860, metavar="N", help="0: a free one (default: %(default)s)")
    add_upscaling(parser, _MAX_PIXELS)
    return parser.parse_args(arguments)


def _prepare(options: Namespace) -> tuple[dict[str, Offered], socket]:
    """Load the models and open the socket; raises UsageError."""
    problem = problem_of("gradio")
    if problem is not None:
        cause = "" if problem == NOT_INSTALLED else f"; {problem}"
        raise UsageError(f"the page needs gradio: {install_command('demo')}{cause}")
    from andfast.demo.page import listen

    try:
        tempfile.gettempdir()  # raises OSError if no folder is writable
        offered = load_offered(options.model, choose_device(options.device), options.precision, options.tile)
    except (ValueError, OSError) as error:  # among them ModelError
        raise UsageError(str(error)) from error
    try:
        return offered, listen(options.host, options.port)
    except OSError as error:
        raise UsageError(f"--host {options.host} --port {options.port}: {error.strerror or error}") from error


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit status."""
    options = _parse(arguments)
    try:
        offered, listener = _prepare(options)
    except UsageError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    from andfast.demo.page import address_of, build, serve

    # For uploads and results, readable by this user only.
    with listener, tempfile.TemporaryDirectory(prefix="andfast-demo-") as folder:
        app = build(offered, Path(folder), options.max_pixels)
        print(f"{counted(len(offered), 'model')}: {', '.join(offered)}")
        print(f"the page is at {address_of(listener)} (Ctrl-C ends it)", flush=True)
        serve(app, listener)
    print("closed")
    return 0


if __name__ == "__main__":
    status = main()
    # sys.exit would wait for threads that still compute.
    os._exit(status)
