"""The page: its layout, the work behind each button, its error messages, and the server."""

from __future__ import annotations

import html
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.themes.utils.fonts import LocalFont

from andfast.data.photographs import held_out_files
from andfast.data.suffixes import IMAGE_SUFFIXES
from andfast.demo.adversary import FREE, Choice, attack, figures, numbers_table
from andfast.demo.enlarging import OWN, enlarge, parse_factor, thumbnail
from andfast.demo.errors import explain
from andfast.demo.models import Offered

# One request is computed at a time, of both tabs and all visitors.
_COMPUTING = {"concurrency_limit": 1, "concurrency_id": "computing"}

# Seconds between deletions of old files, and the age of old ones.
_CLEAN_UP = (600, 7200)

# Seconds until open connections are cut at the end; browsers hold one while they show the page.
_GRACE = 1

# Bytes per pixel of the largest files (16 bits, RGBA, uncompressed), and of everything else in them.
_PIXEL, _HEADERS = 8, 2**20

_MEANS = {
    "conv": "blur and ringing",
    "noise": "noise",
    "slope": "slopes of the activations",
    "conv_dc": "brightness and colour",
    "conv_shift": "shift",
}

_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

_ABOUT = """# andfast
Blind image super-resolution, trained against an adversary that learns the degradation.
"""

_NO_IMAGE = "Choose an image to begin."

_HOW_TO_UPSCALE = "*Choose an image and press Upscale.*"

_HOW_TO_ATTACK = "*Choose an image and press Attack: numbers and images come here.*"

_ABOUT_ATTACK = """The middle of the image is taken as HR. A degradation network that computes the identity makes the
**clean LR** image of it. Within the budget the adversary moves the network's parameters to where the model restores
worst: the **attacked LR** image. The slider lays what the model makes of the one beside what it makes of the other.
Images marked *alone* show what one group of parameters does while the others stay where they were, and say how far that
is from the clean one. Training on such images is what makes a model blind to how an image was degraded.
"""


@dataclass
class _Tab:
    """The parts of a tab that the page resets: the button that starts, and the initial values of its results."""

    begin: gr.Button
    results: dict[Any, Any]


class _ReplacedError(Exception):
    """The upload was replaced while it was being processed."""


@dataclass
class _Upload:
    """A visitor's current upload, kept in a `gr.State`; gradio cannot prevent that it is replaced during processing."""

    path: str | None = None

    def check(self, path: str) -> None:
        """Raise _ReplacedError if the upload is no longer `path`."""
        if path != self.path:
            raise _ReplacedError

    def checked(self, path: str, progress: gr.Progress) -> Callable[[float], None]:
        """A function that shows the progress on `path` while it is the upload."""

        def done(share: float) -> None:
            self.check(path)
            progress(share)

        return done


def build(offered: dict[str, Offered], folder: Path, max_pixels: int) -> FastAPI:
    """Make the page as a web application; the first model is the default.

    `folder` keeps uploads and results until they are old; images of more than `max_pixels` are refused.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    page = _page(offered, folder, max_pixels)
    # Without it gradio does not check that files in requests are uploads, so that any image of this machine could be
    # read. Blocks.launch() sets it, mount_gradio_app() does not.
    page.has_launched = True
    # Not Blocks.launch(), which requests its own address by HTTP, perhaps through a proxy.
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        allowed_paths=[str(path) for path in held_out_files()],
        footer_links=[],
        run_history=False,
        max_file_size=_PIXEL * max_pixels + _HEADERS,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        # A font that comes with gradio.
        theme=gr.themes.Default(primary_hue="blue", font=[LocalFont("IBM Plex Sans", (400, 700)), "sans-serif"]),
        css=_STYLE,
    )


def _page(offered: dict[str, Offered], folder: Path, max_pixels: int) -> gr.Blocks:
    first = next(iter(offered.values()))
    with gr.Blocks(title="andfast", analytics_enabled=False, delete_cache=_CLEAN_UP, fill_width=True) as page:
        current = gr.State(_Upload())
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                upload = gr.File(
                    label=f"Image, up to {max_pixels / 1e6:.3g} megapixels",
                    file_types=sorted(IMAGE_SUFFIXES),
                    height=150,
                    elem_id="upload",
                )
                examples = gr.Dataset(
                    label="Or one of these",
                    components=[gr.Image(render=False, type="filepath")],
                    samples=[[str(path)] for path in held_out_files()],
                    elem_id="examples",
                )
            with gr.Column(scale=2, min_width=220):
                preview = gr.Image(label="What was read", interactive=False, height=220, buttons=[], elem_id="seen")
                description = gr.Markdown(_NO_IMAGE, elem_id="read")
            with gr.Column(scale=2, min_width=220):
                model = gr.Dropdown(
                    [(f"{title}, x{one.scale}", title) for title, one in offered.items()],
                    value=first.title,
                    label="Model",
                    filterable=False,
                    elem_id="model",
                )
                gr.Markdown(f"Computed on {first.upscaler.device}, one request after the other.")
        with gr.Tabs():
            with gr.Tab("Upscale"):
                upscaling = _upscaling(offered, folder, max_pixels, [upload, current, model])
            with gr.Tab("The adversary"):
                attacking = _attacking(offered, max_pixels, [upload, current, model])

        results = upscaling.results | attacking.results | {preview: None, description: _NO_IMAGE}
        buttons = [upscaling.begin, attacking.begin]

        def read_upload(path: str | None, state: _Upload) -> Iterator[dict[Any, Any]]:
            state.path = path
            # Clear the old results first: the new file may not be an image.
            yield {**results, **{button: gr.Button(interactive=False) for button in buttons}}
            if path is None:
                return
            with _report_errors(path) as file:
                image, words = thumbnail(file, max_pixels)
            enabled = {button: gr.Button(interactive=True) for button in buttons}
            yield {preview: image, description: _verbatim(words), **enabled}

        # Of several changes during processing the last one is processed afterwards.
        changed = {"show_progress": "hidden", "trigger_mode": "always_last"}
        upload.change(read_upload, [upload, current], [*results, *buttons], **changed)
        examples.click(lambda sample: sample[0], examples, upload, show_progress="hidden")
    return page


def _upscaling(offered: dict[str, Offered], folder: Path, max_pixels: int, inputs: list[Any]) -> _Tab:
    """Build the first tab; `inputs` are the upload, its state and the model's title."""
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            scale = gr.Dropdown(
                [OWN, "1.5", "2", "3", "4", "6", "8"],
                value=OWN,
                label="Output scale",
                info="or any number, 2.5 for instance",
                allow_custom_value=True,
                elem_id="scale",
            )
            begin = gr.Button("Upscale", variant="primary", interactive=False, elem_id="begin")
            download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
            gr.Markdown(
                "The handle on the image moves, and the wheel zooms. The file keeps 16 bits, transparency and the "
                "colour profile of an image that has them."
            )
        with gr.Column(scale=3, min_width=300):
            slider = gr.ImageSlider(
                label="Bicubic interpolation | the model",
                interactive=False,
                buttons=["fullscreen"],
                max_height=640,
                elem_id="slider",
            )
            line = gr.Markdown(_HOW_TO_UPSCALE, elem_id="line")

    def run(
        path: str | None,
        state: _Upload,
        title: str,
        text: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        with _report_errors(path) as file, _new_folder(folder) as own:
            done = state.checked(path, progress)
            made = enlarge(file, offered[title], parse_factor(text), own, max_pixels, done)
            state.check(path)
            button = gr.DownloadButton(value=str(made.file), interactive=True)
            return (str(made.before), str(made.after)), button, _verbatim(made.line)
        return gr.skip()

    begin.click(run, [*inputs, scale], [slider, download, line], show_progress_on=slider, **_COMPUTING)
    nothing = gr.DownloadButton(value=None, interactive=False, render=False)
    return _Tab(begin, {slider: None, download: nothing, line: _HOW_TO_UPSCALE})


def _attacking(offered: dict[str, Offered], max_pixels: int, inputs: list[Any]) -> _Tab:
    """Build the second tab; `inputs` as for the first."""
    usual = Choice()
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            budget = gr.Slider(
                16, 50, usual.lr_psnr, step=0.5, label="Budget, dB", elem_id="budget",
                info="LR-PSNR that is left at least: less is harsher",
            )  # fmt: skip
            steps = gr.Slider(1, 20, usual.steps, step=1, label="Steps", info="of gradient ascent", elem_id="steps")
            crop = gr.Slider(
                64, 512, usual.crop, step=32, label="Crop, pixels", elem_id="crop",
                info="the middle, cut to a multiple of the scale",
            )  # fmt: skip
            groups = gr.CheckboxGroup(
                [(text, name) for name, text in _MEANS.items()], value=list(FREE), label="What may move",
                elem_id="groups",
            )  # fmt: skip
            seed = gr.Number(usual.seed, precision=0, minimum=0, label="Seed", elem_id="seed")
            begin = gr.Button("Attack", variant="primary", interactive=False, elem_id="attack")
        with gr.Column(scale=3, min_width=300):
            gr.Markdown(_ABOUT_ATTACK)
            numbers = gr.Markdown(_HOW_TO_ATTACK, elem_id="numbers")
            restored = gr.ImageSlider(
                label="SR of clean LR | SR of attacked LR",
                interactive=False,
                buttons=["fullscreen"],
                format="png",  # the default loses some
                max_height=520,
                elem_id="restored",
            )
            cells = gr.HTML(elem_id="cells")
            command = gr.Markdown(elem_id="command")

    def run(
        path: str | None,
        state: _Upload,
        title: str,
        decibels: float,
        count: float,
        size: float,
        names: list[str],
        number: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        with _report_errors(path) as file:
            choice = Choice(int(size), decibels, int(count), int(number or 0), tuple(names))
            result = attack(file, offered[title], choice, max_pixels, state.checked(path, progress))
            line = choice.command(file.name, offered[title])
            state.check(path)
            words = f"The same from the command line:\n```\n{line}\n```"
            return numbers_table(result), (result.clean, result.attacked), figures(result), words
        return gr.skip()

    begin.click(
        run, [*inputs, budget, steps, crop, groups, seed], [numbers, restored, cells, command],
        show_progress_on=restored, **_COMPUTING,
    )  # fmt: skip
    return _Tab(begin, {numbers: _HOW_TO_ATTACK, restored: None, cells: "", command: ""})


@contextmanager
def _report_errors(path: str | None) -> Iterator[Path]:
    """Yield the uploaded file; show errors in the page, and stop quietly if the upload was replaced."""
    if path is None:
        raise gr.Error(_NO_IMAGE, print_exception=False)
    file = Path(path)
    try:
        yield file
    except _ReplacedError:
        pass
    except Exception as error:
        message = explain(error, file)
        if message is None:
            raise
        raise gr.Error(html.escape(message), duration=None, print_exception=False) from error


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for results; delete it if there is an error."""
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield own
    except BaseException:
        shutil.rmtree(own)
        raise


def _verbatim(text: str) -> str:
    """Escape a text, such as a file name, for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#+\-.!|~$&:])", r"\\\1", text)


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn logs the connections that it cuts from here on as errors.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket, at a free port for 0; raises OSError if the address is not this machine's, or in use."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


def address_of(listener: socket.socket) -> str:
    """The URL for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # uvicorn raises the signal again after closing everything; as an exception it lets callers clean up.
    before = signal.signal(signal.SIGTERM, end)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE)
    try:
        _Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
