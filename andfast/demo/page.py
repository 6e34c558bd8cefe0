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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.themes.utils.fonts import LocalFont

from andfast.data.heif import avif_problem
from andfast.data.photographs import held_out_files
from andfast.data.suffixes import IMAGE_SUFFIXES
from andfast.demo.adversary import FREE, Choice, attack, figures, numbers_table
from andfast.demo.enlarging import OWN, Enlarged, archive, enlarge, glance, parse_factor, thumbnail
from andfast.demo.errors import explain
from andfast.demo.models import Offered
from andfast.pretrained import PURPOSES, describe

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

_NO_IMAGE = "Choose images to begin."

_HOW_TO_UPSCALE = "*Choose images and press Upscale.*"

_HOW_TO_ATTACK = "*Choose an image and press Attack: numbers and images come here.*"

# What results are written as, with the suffix; AVIF, which some Pillows lack, last. And what has a quality.
_FORMATS = [("PNG", ".png"), ("TIFF", ".tif"), ("JPEG", ".jpg"), ("WebP", ".webp"), ("AVIF", ".avif")]
_WITH_QUALITY = (".jpg", ".webp", ".avif")

_ABOUT_ATTACK = """The middle of the (first) image is taken as HR. A degradation network that computes the identity
makes the **clean LR** image of it. Within the budget the adversary moves the network's parameters to where the model
restores worst: the **attacked LR** image. The slider lays what the model makes of the one beside what it makes of the
other. Images marked *alone* show what one group of parameters does while the others stay where they were, and say how
far that is from the clean one. Training on such images is what makes a model blind to how an image was degraded.
"""


@dataclass
class _Tab:
    """The parts of a tab that the page resets: the button that starts, and the initial values of its results."""

    begin: gr.Button
    results: dict[Any, Any]


class _ReplacedError(Exception):
    """The uploads were replaced while they were being processed."""


@dataclass
class _Upload:
    """A visitor's current files, kept in a `gr.State`; gradio cannot prevent that they are replaced meanwhile."""

    paths: list[str] | None = None

    def check(self, paths: list[str]) -> None:
        """Raise _ReplacedError if the files are no longer `paths`."""
        if paths != self.paths:
            raise _ReplacedError

    def checked(
        self, paths: list[str], progress: gr.Progress, before: int = 0, count: int = 1
    ) -> Callable[[float], None]:
        """A function that shows the progress while `paths` are the files: `before` of `count` are done."""

        def done(share: float) -> None:
            self.check(paths)
            progress((before + share) / count)

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
                    label=f"Images, up to {max_pixels / 1e6:.3g} megapixels each",
                    file_count="multiple",
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
                words = [_verbatim(describe(title)) for title in offered if title in PURPOSES]
                words.append(f"Computed on {first.upscaler.device}, one request after the other.")
                gr.Markdown("\n\n".join(words))
        with gr.Tabs():
            with gr.Tab("Upscale"):
                upscaling = _upscaling(offered, folder, max_pixels, [upload, current, model])
            with gr.Tab("The adversary"):
                attacking = _attacking(offered, max_pixels, [upload, current, model])

        results = upscaling.results | attacking.results | {preview: None, description: _NO_IMAGE}
        buttons = [upscaling.begin, attacking.begin]

        def read_upload(paths: list[str] | None, state: _Upload) -> Iterator[dict[Any, Any]]:
            state.paths = paths
            # Clear the old results first: the new files may be no images.
            yield {**results, **{button: gr.Button(interactive=False) for button in buttons}}
            if not paths:
                return
            image, lines = None, []
            with _report_errors(paths[0]):
                for path in paths:
                    with _warn_of_errors(path, alone=len(paths) == 1) as file:
                        if image is None:
                            image, words = thumbnail(file, max_pixels)
                        else:
                            words = glance(file, max_pixels)
                        lines.append(_verbatim(words))
            if image is not None:
                enabled = {button: gr.Button(interactive=True) for button in buttons}
                text = lines[0] if len(paths) == 1 else "\n".join(f"- {line}" for line in lines)
                yield {preview: image, description: text, **enabled}

        # Of several changes during processing the last one is processed afterwards.
        changed = {"show_progress": "hidden", "trigger_mode": "always_last"}
        upload.change(read_upload, [upload, current], [*results, *buttons], **changed)
        examples.click(lambda sample: [sample[0]], examples, upload, show_progress="hidden")
    return page


def _upscaling(offered: dict[str, Offered], folder: Path, max_pixels: int, inputs: list[Any]) -> _Tab:
    """Build the first tab; `inputs` are the files, their state and the model's title."""
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
            kind = gr.Dropdown(
                _FORMATS if avif_problem() is None else _FORMATS[:-1],
                value=".png",
                label="Format",
                info="PNG and TIFF keep 16 bits; JPEG has no transparency",
                filterable=False,
                elem_id="format",
            )
            quality = gr.Slider(1, 100, 95, step=1, label="Quality", visible=False, elem_id="quality")
            begin = gr.Button("Upscale", variant="primary", interactive=False, elem_id="begin")
            download = gr.DownloadButton("Download", interactive=False, elem_id="download")
            gr.Markdown(
                "The handle on the image moves, and the wheel zooms. Several results are downloaded as one ZIP file."
            )
        with gr.Column(scale=3, min_width=300):
            shown = gr.Dropdown([], label="Result", visible=False, filterable=False, elem_id="shown")
            slider = gr.ImageSlider(
                label="Bicubic interpolation | the model",
                interactive=False,
                buttons=["fullscreen"],
                max_height=640,
                elem_id="slider",
            )
            line = gr.Markdown(_HOW_TO_UPSCALE, elem_id="line")

    views = gr.State([])  # of the results: what the slider shows, and the line

    def run(
        paths: list[str] | None,
        state: _Upload,
        title: str,
        text: str,
        suffix: str,
        level: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        with _report_errors(paths and paths[0]), _new_folder(folder) as own:
            factor, made = parse_factor(text), []
            for index, path in enumerate(paths):
                done, place = state.checked(paths, progress, index, len(paths)), own / str(index)
                place.mkdir()
                with _warn_of_errors(path, alone=len(paths) == 1) as file:
                    one = enlarge(file, offered[title], factor, place, max_pixels, done, suffix, int(level))
                    made.append(one)
            state.check(paths)
            if made:
                return _results(made, own / "upscaled.zip")
            shutil.rmtree(own)
        return gr.skip()

    def _results(made: Sequence[Enlarged], packed: Path) -> tuple[Any, ...]:
        """What the page shows of results, and lets out: a file, or several packed into one."""
        seen = [((str(one.before), str(one.after)), _verbatim(one.line)) for one in made]
        names = [(one.file.name, index) for index, one in enumerate(made)]
        if len(made) > 1:
            archive([one.file for one in made], packed)
        button = gr.DownloadButton(value=str(packed if len(made) > 1 else made[0].file), interactive=True)
        return *seen[0], button, gr.Dropdown(names, value=0, visible=len(made) > 1), seen

    parts = [slider, line, download, shown, views]
    begin.click(run, [*inputs, scale, kind, quality], parts, show_progress_on=slider, **_COMPUTING)
    shown.input(lambda index, seen: seen[index], [shown, views], [slider, line], show_progress="hidden")
    kind.input(lambda suffix: gr.Slider(visible=suffix in _WITH_QUALITY), kind, quality, show_progress="hidden")
    nothing = gr.DownloadButton(value=None, interactive=False, render=False)
    hidden = gr.Dropdown([], value=None, visible=False, render=False)
    return _Tab(begin, {slider: None, line: _HOW_TO_UPSCALE, download: nothing, shown: hidden, views: []})


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
        paths: list[str] | None,
        state: _Upload,
        title: str,
        decibels: float,
        count: float,
        size: float,
        names: list[str],
        number: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        with _report_errors(paths and paths[0]) as file:
            choice = Choice(int(size), decibels, int(count), int(number or 0), tuple(names))
            result = attack(file, offered[title], choice, max_pixels, state.checked(paths, progress))
            line = choice.command(file.name, offered[title])
            state.check(paths)
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
    if not path:
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
def _warn_of_errors(path: str, alone: bool) -> Iterator[Path]:
    """Yield one of several uploaded files; of its errors the page warns, and goes on, unless it is `alone`."""
    file = Path(path)
    try:
        yield file
    except _ReplacedError:
        raise
    except Exception as error:
        message = explain(error, file)
        if message is None or alone:
            raise
        gr.Warning(html.escape(message), duration=None)


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
