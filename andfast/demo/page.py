"""The page itself: what is where on it, and which work belongs to which button."""

from __future__ import annotations

import html
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.themes.utils.fonts import LocalFont

from andfast.data.listing import IMAGE_SUFFIXES
from andfast.data.photographs import held_out_files
from andfast.demo.adversary import FREE, Choice, attack
from andfast.demo.enlarging import OWN, enlarge, parse_factor
from andfast.demo.failures import explain
from andfast.demo.findings import figures, table
from andfast.demo.models import Offered
from andfast.demo.pictures import thumbnail

# One request computes at a time, of whichever tab and whoever's; the others wait.
_COMPUTING = {"concurrency_limit": 1, "concurrency_id": "computing"}

# Seconds between two looks for old files, and what is old.
_CLEAN_UP = (600, 7200)

# Bytes of a pixel in the largest of files, 16 bits of RGB and alpha without compression; and of all else in it.
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
    """What a tab shares with the rest of the page: the button that begins, and its results when there are none."""

    begin: gr.Button
    results: dict[Any, Any]


class _ExchangedError(Exception):
    """The image that was being worked on is no longer the page's."""


@dataclass
class _Shown:
    """The upload that a visitor's page shows, which may change while another is worked on: gradio cannot stop that.

    Kept in a `gr.State`, of which all that a visitor does gets the same one.
    """

    path: str | None = None

    def check(self, path: str) -> None:
        """Raises _ExchangedError: another is shown by now."""
        if path != self.path:
            raise _ExchangedError

    def checked(self, path: str, progress: gr.Progress) -> Callable[[float], None]:
        """Tells the progress on a file, for as long as it is shown."""

        def done(share: float) -> None:
            self.check(path)
            progress(share)

        return done


def build(offered: dict[str, Offered], folder: Path, max_pixels: int) -> FastAPI:
    """The page as a web application.

    Args:
        offered: the models to choose from; the first one is chosen at first.
        folder: where uploads and results are kept, for a while.
        max_pixels: images of more are refused.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    page = _page(offered, folder, max_pixels)
    # Without it gradio does not check that files named in requests are uploads: any image of this machine could be
    # read. Blocks.launch() sets it, mount_gradio_app() does not.
    page.has_launched = True
    # Not Blocks.launch(), which asks its own address by HTTP, through a proxy where one is set.
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
        # A font that comes with gradio, in two weights that have all letters.
        theme=gr.themes.Default(primary_hue="blue", font=[LocalFont("IBM Plex Sans", (400, 700)), "sans-serif"]),
        css=_STYLE,
    )


def _page(offered: dict[str, Offered], folder: Path, max_pixels: int) -> gr.Blocks:
    first = next(iter(offered.values()))
    with gr.Blocks(title="andfast", analytics_enabled=False, delete_cache=_CLEAN_UP, fill_width=True) as page:
        shown = gr.State(_Shown())
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
                seen = gr.Image(label="What was read", interactive=False, height=220, buttons=[], elem_id="seen")
                read = gr.Markdown(_NO_IMAGE, elem_id="read")
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
                upscaling = _upscaling(offered, folder, max_pixels, [upload, shown, model])
            with gr.Tab("The adversary"):
                attacking = _attacking(offered, max_pixels, [upload, shown, model])

        results = upscaling.results | attacking.results | {seen: None, read: _NO_IMAGE}
        buttons = [upscaling.begin, attacking.begin]

        def look(path: str | None, now: _Shown) -> Iterator[dict[Any, Any]]:
            now.path = path
            # What belongs to another image goes first, for the new one may be none.
            yield {**results, **{button: gr.Button(interactive=False) for button in buttons}}
            if path is None:
                return
            with _told(path) as file:
                image, words = thumbnail(file, max_pixels)
            yield {seen: image, read: _verbatim(words), **{button: gr.Button(interactive=True) for button in buttons}}

        # Of changes while this is at work the last one is looked at afterwards, too.
        changed = {"show_progress": "hidden", "trigger_mode": "always_last"}
        upload.change(look, [upload, shown], [*results, *buttons], **changed)
        examples.click(lambda sample: sample[0], examples, upload, show_progress="hidden")
    return page


def _upscaling(offered: dict[str, Offered], folder: Path, max_pixels: int, inputs: list[Any]) -> _Tab:
    """The first tab; `inputs` are the upload, what is shown of it and the model's title."""
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
        now: _Shown,
        title: str,
        text: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        with _told(path) as file, _new_folder(folder) as own:
            done = now.checked(path, progress)
            made = enlarge(file, offered[title], parse_factor(text), own, max_pixels, done)
            now.check(path)
            button = gr.DownloadButton(value=str(made.file), interactive=True)
            return (str(made.before), str(made.after)), button, _verbatim(made.line)
        return gr.skip()

    begin.click(run, [*inputs, scale], [slider, download, line], show_progress_on=slider, **_COMPUTING)
    nothing = gr.DownloadButton(value=None, interactive=False, render=False)
    return _Tab(begin, {slider: None, download: nothing, line: _HOW_TO_UPSCALE})


def _attacking(offered: dict[str, Offered], max_pixels: int, inputs: list[Any]) -> _Tab:
    """The second tab; `inputs` as for the first."""
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
                [(_MEANS[name], name) for name in _MEANS], value=list(FREE), label="What may move", elem_id="groups"
            )
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
        now: _Shown,
        title: str,
        decibels: float,
        count: float,
        size: float,
        names: list[str],
        number: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        with _told(path) as file:
            choice = Choice(int(size), decibels, int(count), int(number or 0), tuple(names))
            found = attack(file, offered[title], choice, max_pixels, now.checked(path, progress))
            line = choice.command(file.name, offered[title])
            now.check(path)
            words = f"The same from the command line:\n```\n{line}\n```"
            return table(found), (found.clean, found.attacked), figures(found), words
        return gr.skip()

    begin.click(
        run, [*inputs, budget, steps, crop, groups, seed], [numbers, restored, cells, command],
        show_progress_on=restored, **_COMPUTING,
    )  # fmt: skip
    return _Tab(begin, {numbers: _HOW_TO_ATTACK, restored: None, cells: "", command: ""})


@contextmanager
def _told(path: str | None) -> Iterator[Path]:
    """The uploaded file; what goes wrong with it is said in the page, and work on one that was exchanged is left."""
    if path is None:
        raise gr.Error(_NO_IMAGE, print_exception=False)
    file = Path(path)
    try:
        yield file
    except _ExchangedError:
        pass
    except Exception as error:
        message = explain(error, file)
        if message is None:
            raise
        raise gr.Error(html.escape(message), duration=None, print_exception=False) from error


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder for results in another; it goes if there are none."""
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield own
    except BaseException:
        shutil.rmtree(own)
        raise


def _verbatim(text: str) -> str:
    """Markdown that shows a text as it is, whatever a file's name holds."""
    return re.sub(r"([\\`*_{}\[\]<>#+\-.!|~$&:])", r"\\\1", text)
