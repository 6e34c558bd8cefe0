"""Make a model card from a record of `studies.ship`, which has everything that differs between models."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from andfast.evaluation.models import BICUBIC as INTERPOLATION
from andfast.evaluation.robustness import CLEAN, case_name
from andfast.training.attack_config import BICUBIC, MixConfig
from andfast.utils.formatting import markdown_table

_GENERATORS = {
    "compact": "a Compact (SRVGGNetCompact, the small generator of Real-ESRGAN)",
    "rrdbnet": "an RRDBNet (the generator of ESRGAN)",
}
_BASELINES = {"bicubic": "bicubic interpolation", "classical": "its classical twin"}


def model_card(record: dict[str, Any]) -> str:
    """The card's Markdown."""
    # Older records have neither.
    worst = [_worst_case(record)] if "worst_case" in record else []
    worst += [_noise(record)] if "noise_and_grid" in record else []
    sections = [_head(record), _results(record), *worst, _training(record), _images(record)]
    sections += [_limits(record), _making(record)]
    return "\n\n".join(sections) + "\n"


def comparison(records: Sequence[dict[str, Any]]) -> str:
    """README's table: PSNR-Y of bicubic interpolation, of the first model's classical twin, and of the models.

    The worst case of an adversary is the mean over its budgets of 40, 34 and 28 dB.
    """
    tests = {
        "real pairs": "real pairs, all",
        "blur, noise, JPEG": "photographs, all but clean",
        "clean": "photographs, clean",
    }
    lines = []
    for record, row, title in [
        *((records[0], row, title) for row, title in (("bicubic", INTERPOLATION), ("classical", "classical twin"))),
        *((record, "adversarial", record["name"]) for record in records),
    ]:
        found = {line["test"]: line["psnr_y"][row] for line in record["evaluation"]["table"]}
        means = record["worst_case"]["means"]
        worst = [
            fmean(means[case_name(attacker, budget)][title]["psnr_y"] for budget in (40, 34, 28))
            for attacker in ("F", "noise", "camera")
        ]
        lines.append([title, *(f"{value:.2f}" for value in (*(found[test] for test in tests.values()), *worst))])
    return markdown_table(["", *tests, "worst F", "worst noise", "worst camera"], lines)


def _head(record: dict[str, Any]) -> str:
    model, name, scale = record["model"], record["name"], record["model"]["scale"]
    generator = record["runs"]["adversarial"]["config"]["generator"]
    kind = generator["name"] or "compact"
    trial = "\n\n**This is only a small trial of how the model is made; the model is useless.**"
    return f"""# {name}

Blind super-resolution by a factor of {scale}: {_GENERATORS[kind]} with {model["parameters"]:,} \
parameters ({model["bytes"] / 2**10:,.0f} KiB), trained against an adversary that searches for the degradation that \
the model restores worst, after *AND: Adversarial Neural Degradation for Learning Blind Image Super-Resolution* \
(Luo, Wu, Guo; NeurIPS 2023).{trial if record["quick"] else ""}

```bash
python -m andfast.upscale photo.jpg --output upscaled --model {name}
```

```python
model = andfast.load_pretrained("{name}")  # (B, 3, H, W) in [0, 1] -> (B, 3, {scale} * H, {scale} * W)
```

spandrel, chaiNNer and ComfyUI can load `{model["file"]}`."""


def _results(record: dict[str, Any]) -> str:
    psnr, ssim = [], []
    for line in record["evaluation"]["table"]:
        cells = [f"{line['psnr_y'][row]:.2f}" for row in _BASELINES] + [f"**{line['psnr_y']['adversarial']:.2f}**"]
        psnr.append(
            [line["test"], line["images"], *cells, *(_interval(line["psnr_y_gain"][row]) for row in _BASELINES)]
        )
        ssim.append([line["test"], *(f"{line['ssim_y'][row]:.4f}" for row in (*_BASELINES, "adversarial"))])
    names = ["bicubic interpolation", "classical twin", "this model"]
    return f"""## Results

PSNR on Y in dB, without a border of {record["model"]["scale"]} pixels. The classical twin is the same network, \
trained with the same HR patches and number of updates, but only on bicubic LR images (`--attack.method none`). Gains \
are means over the images, with 95% confidence intervals of the differences, paired by image.

{markdown_table(["", "images", *names, "gain over bicubic", "gain over the twin"], psnr)}

SSIM on Y:

{markdown_table(["", *names], ssim)}

*Real pairs* were taken by a camera at both sizes; these are every second pair by name, which were used neither to \
choose settings nor to train. *Photographs* are from the same collections as the training images, but held out. Their \
LR images were made by bicubic downsampling (clean) or by a simulated camera (sigma of the blur in HR pixels, sigma of \
the noise in 8-bit units, JPEG quality), which was not used in training."""


def _worst_case(record: dict[str, Any]) -> str:
    found = record["worst_case"]
    rows = []
    for attacker in found["attackers"]:
        cases = [CLEAN, *(case_name(attacker, budget) for budget in found["budgets"])]
        for title in found["means"][CLEAN]:
            bold = "**" if title == record["name"] else ""
            rows.append(
                [attacker, title, *(f"{bold}{found['means'][case][title]['psnr_y']:.2f}{bold}" for case in cases)]
            )
    heads = ["adversary", "", CLEAN, *(f"{budget:g} dB" for budget in found["budgets"])]
    size = found["size"]
    return f"""## In the worst case

Mean PSNR on Y in dB of the worst LR image that an adversary finds within a budget, the least PSNR of the LR image \
against the clean one, on {len(found["crops"])} crops of {size} x {size} of the held-out photographs \
(`andfast.robustness` explains the adversaries; `F` is the degradation network, searched anew for every image). Each \
searches with {found["steps"]} gradient steps, or {found["generations"]} generations of {found["population"]} cameras; \
a longer search may find worse ones.

{markdown_table(heads, rows, words=2)}

![Worst cases by budget]({record["name"]}.png)"""


def _noise(record: dict[str, Any]) -> str:
    names = {**_BASELINES, "adversarial": "this model"}
    rows = [
        [names[row], f"{found['noise']:.2f}", f"{found['grid']:.2f}"] for row, found in record["noise_and_grid"].items()
    ]
    return f"""## Flat areas

Flat gray with Gaussian noise of a standard deviation of 15, in 8-bit units: the noise left in the result, and how far \
the largest and the smallest of the means at the places within an LR pixel differ; about 0 unless the model draws a \
regular grid.

{markdown_table(["", "noise", "grid"], rows)}"""


def _training(record: dict[str, Any]) -> str:
    run, twin = (record["runs"][name] for name in ("adversarial", "classical"))
    train, attack, degradation = (run["config"][key] for key in ("train", "attack", "degradation"))
    course = [
        [f"{point['step']:,}", f"{point['loss']:.4f}", _or_blank(point["gain"], 2), _or_blank(point["lr_psnr"], 1)]
        for point in run["course"]
    ]
    # Older records have the setting's older name.
    budget = attack["lr_psnr"] if "lr_psnr" in attack else attack["psnr_range"]
    mix, soften = attack["mix"], run["config"]["data"]["soften"]
    within = (
        "without a budget" if budget is None else f"with budgets (LR PSNR to it) of {budget[0]:g} to {budget[1]:g} dB"
    )
    attacked = "every LR image"
    if mix["share"]:
        noise = mix.get("noise")  # older records know of none
        noisy = f" and Gaussian noise of {noise[0]:g} to {noise[1]:g}" if noise else ""
        attacked = f"all LR images but {100 * mix['share']:g}% of each batch (`{mix['method']}`{noisy} instead)"
    softened = ""
    if soften is not None:
        softened = f" HR patches were softened by a Gaussian blur of {soften[0]:g} to {soften[1]:g} pixels."
    warmup = f"The first {train['warmup']:,} updates used clean LR images. After them the" if train["warmup"] else "The"
    return f"""## Training

From scratch, without another model's weights: {run["updates"]:,} updates with {train["batch_size"]} patches of \
{train["patch_size"]} x {train["patch_size"]} HR pixels and an L1 loss, in {_duration(run["seconds_in_steps"])} \
(the twin: {twin["updates"]:,} updates, {_duration(twin["seconds_in_steps"])}). {warmup} adversary \
(`{attack["method"]}`, degradation networks of {degradation["channels"]} channels) moved {attacked} away from the \
clean one, {within}.{softened}{_networks(run["config"])} All settings are in `{record["name"]}.yaml`. Means over the \
updates from one line to the next:

{markdown_table(["update", "loss", "loss after attack / before", "LR PSNR, dB"], course, words=0)}"""


def _networks(config: dict[str, Any]) -> str:
    """Sentences about the lens, the random start, and images that share a network, where there are such settings."""
    train, attack, degradation = (config[key] for key in ("train", "attack", "degradation"))
    text = ""
    if lens := attack.get("lens"):  # older records know of none
        blur, sharpen = (f"{low:g} to {high:g}" for low, high in (lens["blur"], lens["sharpen"]))
        text = f""" Before the degradation networks each HR patch passed a random lens: a Gaussian blur of {blur} \
pixels, then sharpening (unsharp masking) by {sharpen}; the clean LR image is that of the lens alone."""
    if baseline := attack.get("baseline"):
        of = "bicubic interpolation" if baseline == BICUBIC else "another model"
        text += f" The adversary raised the difference from the L1 loss of {of}."
    if every := attack.get("noise_every"):
        text += f" One update in {every} after the warm-up used adversarial noise on the LR image instead."
    if share := attack.get("random_start"):
        text += f" The search began at a random deviation that takes {100 * share:g}% of the allowed error."
    if degradation["num_networks"] != "batch":
        attacked = train["batch_size"] - MixConfig(attack["mix"]["share"]).images(train["batch_size"])
        if (sharing := attacked // degradation["num_networks"]) > 1:
            text += f" Every {sharing} images shared a network."
    return text


def _or_blank(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _images(record: dict[str, Any]) -> str:
    rows = [
        [f"`{source['prefix']}*`", source["name"], f"[{source['licence']}]({source['url']})", source["trained"],
         source["held_out"]]
        for source in record["images"]
    ]  # fmt: skip
    return f"""## Images and their licences

{markdown_table(["files", "from", "licence", "trained on", "held out"], rows, words=3)}

The images are not part of andfast. The code that made the model has the MIT licence. We do not judge whether the \
images' licences also apply to a model that was trained on them; read them before you distribute the weights."""


def _limits(record: dict[str, Any]) -> str:
    table = record["evaluation"]["table"]
    points = []
    for row, title in _BASELINES.items():
        gains = {line["test"]: line["psnr_y_gain"][row] for line in table}
        if below := [test for test, gain in gains.items() if gain["high"] is not None and gain["high"] < 0]:
            points.append(f"It is worse than {title} on: {'; '.join(below)}.")
        if unsure := [test for test, gain in gains.items() if gain["low"] is None or gain["low"] <= 0 <= gain["high"]]:
            points.append(f"It may be no better than {title} on: {'; '.join(unsure)}.")
    trained = sum(source["trained"] for source in record["images"])
    points += [
        f"It was trained on {trained:,} photographs; drawings, documents and text were not tested.",
        "It was trained to minimise the error: it makes images sharper and cleaner, and invents no detail.",
        f"Its factor is {record['model']['scale']}; for another one, resize the result.",
        "The gains on real pairs were measured on few pairs, and only on those of the cameras above.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _making(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version and name != "andfast"
    )
    return f"""## Reproduction

```bash
{record["command"]}
```

with the paths of the folders. This command made the model on {record["date"]}, at commit {record["commit"]}, on \
{machine["processor"]} ({versions}). `{record["name"]}.json` has all of this, the results of every image and the \
weights' SHA-256; this page is made from it."""


def _interval(gain: dict[str, float | None]) -> str:
    around = "" if gain["low"] is None else f" ({gain['low']:+.2f} to {gain['high']:+.2f})"
    return f"{gain['mean']:+.2f}{around}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
