"""The page itself: what is where on it, and which work belongs to which button."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from andfast.data.images import IMAGE_SUFFIXES
from andfast.data.photographs import held_out_files
from andfast.demo.adversary import FREE, Choice, Found, attack
from andfast.demo.enlarging import OWN, enlarge
from andfast.demo.enlarging import parse_factor as factor_of
from andfast.demo.failures import explain
from andfast.demo.models import Offered
from andfast.demo.pictures import thumbnail

# One request computes at a time, of whichever tab and whoever's; the others wait.
_COMPUTING = {"concurrency_limit": 1, "concurrency_id": "computing"}

# Seconds between two looks for old files, and what is old.
_CLEAN_UP = (600, 7200)

# Bytes of a pixel in the largest of files, 16 bits of RGB and alpha without compression; and of all else.
_PIXEL, _HEADERS = 8, 2**20

_MEANS = {
    "conv": "blur and ringing",
    "noise": "noise",
    "slope": "slopes of the activations",
    "conv_dc": "brightness and colour",
    "conv_shift": "shift",
}

_STYLE = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0.1em; }
#line, #about { color: var(--body-text-color-subdued); }
#cells .thumbnail-item img, #cells img { image-rendering: pixelated; }
#command code { white-space: pre-wrap !important; word-break: break-word; }
footer { display: none !important; }
"""

_ABOUT_ATTACK = """
The middle of the image is taken as HR. A degradation network that computes the identity makes a **clean LR** image of
it, and the adversary moves the network's parameters, within the budget, to where the model restores worst: the
**attacked LR** image. It mostly looks like the same image; what the model makes of it does not. Images marked *alone*
show one group of parameters moved as far as it was found, the others where they were: blur and ringing, noise, slopes,
colour. Training on such images is what makes a model blind.
"""


def build(offered: dict[str, Offered], folder: Path, max_pixels: int) -> FastAPI:
    """The page as a web application.

    Args:
        offered: the models to choose from; the first one is chosen at first.
        folder: where uploads and results are kept, for a while.
        max_pixels: images of more are refused.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    page = _page(offered, folder, max_pixels)
    # Not Blocks.launch(), which asks its own address by HTTP, through a proxy where one is set.
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=_PIXEL * max_pixels + _HEADERS,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(primary_hue="blue"),
        css=_STYLE,
    )


def _page(offered: dict[str, Offered], folder: Path, max_pixels: int) -> gr.Blocks:
    first = next(iter(offered.values()))
    with gr.Blocks(title="andfast", analytics_enabled=False, delete_cache=_CLEAN_UP) as page:
        gr.Markdown(
            "# andfast\nBlind image super-resolution, trained against an adversary that learns the degradation.",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
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
            with gr.Column(scale=2, min_width=240):
                seen = gr.Image(
                    label="What was read", interactive=False, height=220, buttons=[], format="png", elem_id="seen"
                )
                read = gr.Markdown("Choose an image to begin.", elem_id="read")
            with gr.Column(scale=2, min_width=240):
                model = gr.Dropdown(
                    [(f"{title}, x{one.scale}", title) for title, one in offered.items()],
                    value=first.title,
                    label="Model",
                    filterable=False,
                    elem_id="model",
                )
                gr.Markdown(f"Computed on {first.upscaler.device}, one request after the other.", elem_id="about")
        with gr.Tabs():
            with gr.Tab("Upscale"):
                slider, download, line = _upscaling(offered, folder, max_pixels, upload, model)
            with gr.Tab("The adversary"):
                numbers, restored, cells, command = _attacking(offered, folder, max_pixels, upload, model)

        results = [slider, download, line, numbers, restored, cells, command]

        def empty() -> list[Any]:
            return [None, "", None, gr.DownloadButton(interactive=False, value=None), "", "", None, None, ""]

        def look(path: str | None) -> tuple[Any, str]:
            if path is None:
                return None, "Choose an image to begin."
            with _told(path):
                image, words = thumbnail(Path(path), max_pixels)
            return image, words

        upload.change(empty, None, [seen, read, *results], show_progress="hidden", queue=False).then(
            look, upload, [seen, read], show_progress="minimal"
        )
        examples.click(lambda sample: sample[0], examples, upload, show_progress="hidden")
    return page


def _upscaling(
    offered: dict[str, Offered], folder: Path, max_pixels: int, upload: gr.File, model: gr.Dropdown
) -> tuple[gr.ImageSlider, gr.DownloadButton, gr.Markdown]:
    """The first tab."""
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
            begin = gr.Button("Upscale", variant="primary", elem_id="begin")
            download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
        with gr.Column(scale=3, min_width=320):
            slider = gr.ImageSlider(
                label="Bicubic interpolation | the model",
                interactive=False,
                buttons=["fullscreen"],
                max_height=640,
                elem_id="slider",
            )
            line = gr.Markdown(elem_id="line")

    def run(path: str | None, title: str, text: str, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        with _told(path) as file:
            made = enlarge(file, offered[title], factor_of(text), _new(folder), max_pixels, progress)
        return (str(made.before), str(made.after)), gr.DownloadButton(value=str(made.file), interactive=True), made.line

    begin.click(run, [upload, model, scale], [slider, download, line], show_progress_on=slider, **_COMPUTING)
    return slider, download, line


def _attacking(
    offered: dict[str, Offered], folder: Path, max_pixels: int, upload: gr.File, model: gr.Dropdown
) -> tuple[gr.Markdown, gr.ImageSlider, gr.Gallery, gr.Markdown]:
    """The second tab."""
    usual = Choice()
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            budget = gr.Slider(
                16, 50, usual.lr_psnr, step=0.5, label="Budget: LR-PSNR, dB", elem_id="budget",
                info="the attacked LR image comes no farther from the clean one; smaller is harsher",
            )  # fmt: skip
            steps = gr.Slider(1, 20, usual.steps, step=1, label="Steps of gradient ascent", elem_id="steps")
            crop = gr.Slider(
                64, 512, usual.crop, step=32, label="Middle of the image, pixels", elem_id="crop",
                info="rounded to the model's scale; time grows with its square",
            )  # fmt: skip
            groups = gr.CheckboxGroup(
                [(_MEANS[name], name) for name in _MEANS], value=list(FREE), label="What may move", elem_id="groups"
            )
            seed = gr.Number(usual.seed, precision=0, minimum=0, label="Seed", elem_id="seed")
            begin = gr.Button("Attack", variant="primary", elem_id="attack")
        with gr.Column(scale=3, min_width=320):
            gr.Markdown(_ABOUT_ATTACK, elem_id="about")
            numbers = gr.Markdown(elem_id="numbers")
            restored = gr.ImageSlider(
                label="The model's restoration of the clean LR | of the attacked LR",
                interactive=False,
                buttons=["fullscreen"],
                max_height=520,
                elem_id="restored",
            )
            cells = gr.Gallery(
                label="What was found", columns=[2, 3, 4], object_fit="contain", height="auto", interactive=False,
                format="png", buttons=["fullscreen"], elem_id="cells",
            )  # fmt: skip
            command = gr.Markdown(elem_id="command")

    def run(
        path: str | None,
        title: str,
        *chosen: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        decibels, count, size, names, number = chosen
        with _told(path) as file:
            choice = Choice(int(size), decibels, int(count), int(number or 0), tuple(names))
            found = attack(file, offered[title], choice, max_pixels, progress)
            line = choice.command(file.name, offered[title])
        images = [(cell.image, f"{cell.label}, {cell.note}" if cell.note else cell.label) for cell in found.cells]
        return (
            _table(found),
            (found.clean, found.attacked),
            images,
            f"The same from the command line:\n```\n{line}\n```",
        )

    begin.click(
        run, [upload, model, budget, steps, crop, groups, seed], [numbers, restored, cells, command],
        show_progress_on=restored, **_COMPUTING,
    )  # fmt: skip
    return numbers, restored, cells, command


def _table(found: Found) -> str:
    """The numbers, in Markdown."""
    rows: Sequence[tuple[str, str, str]] = (
        ("LR-PSNR, dB from the clean LR", "", f"{found.lr_psnr:.2f}"),
        ("loss: mean absolute difference from HR", *(f"{value:.4f}" for value in found.loss)),
        ("restoration's PSNR-Y, dB", *(f"{value:.2f}" for value in found.psnr_y)),
    )
    lines = ["| | clean LR | attacked LR |", "|---|--:|--:|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


@contextmanager
def _told(path: str | None) -> Iterator[Path]:
    """The uploaded file; what goes wrong with it is said in the page."""
    if path is None:
        raise gr.Error("Choose an image first.", title="No image", print_exception=False)
    file = Path(path)
    try:
        yield file
    except Exception as error:
        message = explain(error, file)
        if message is None:
            raise
        raise gr.Error(html.escape(message), title="That did not work", duration=None, print_exception=False) from error


def _new(folder: Path) -> Path:
    """A folder for one result."""
    return Path(tempfile.mkdtemp(dir=folder))
