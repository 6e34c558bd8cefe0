"""The page in a browser, as who tries andfast meets it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from image_files import SRGB
from PIL import Image
from skimage import data
from upscaling_models import compact, noise

import andfast
from andfast.inference.formats import Picture, read_picture, write_picture
from andfast.models import save_model
from andfast.pretrained import pretrained_names

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

# Without a sandbox, which needs rights that containers do not give; and nothing that a browser does of itself.
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

MOST = 20_000  # pixels
PATIENCE = 60  # seconds, on a busy machine


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(compact(), path)
    return path


@pytest.fixture(scope="module")
def served(model_file, tmp_path_factory):
    """The command's process and the page's address."""
    command = [sys.executable, "-m", "andfast.demo", "--port", "0", "--model", str(model_file), "--device", "cpu"]
    command += ["--precision", "float32", "--max-pixels", str(MOST)]
    own = tmp_path_factory.mktemp("temporary")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(own)}
    environment["PYTHONPATH"] = str(Path(andfast.__file__).parents[1])
    # Not where the packages are: of a working directory gradio lets all files out.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, cwd=elsewhere) as run:
        try:
            told = [run.stdout.readline(), run.stdout.readline()]
            if told[0] != f"{1 + len(pretrained_names())} models: tiny, {', '.join(pretrained_names())}\n":
                run.kill()  # else there is no end to read to
                pytest.fail(f"{told[0]}{run.stderr.read()}")
            (url,) = re.findall(r"^the page is at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)$", told[1])
            yield run, url, own
        finally:
            run.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        yield engine.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)


@pytest.fixture
def page(served, browser):
    """The page; afterwards nothing was asked of any other machine, and the console has no errors."""
    _, url, _ = served
    with browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True) as context:
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        asked, errors = [], []
        context.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        expected = {urlsplit(url).netloc}
        assert {urlsplit(each).netloc for each in asked if not each.startswith(("data:", "blob:"))} == expected
        assert not errors


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()[60:180, 160:310]).save(path)
    return path


def upload(page, *paths):
    page.locator("#upload input[type=file]").set_input_files(paths)


def choose(page, name, option):
    """An option of a list."""
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def upscale(page, path, folder):
    """Upload a file, and have it upscaled and saved."""
    upload(page, path)
    expect(page.locator("#read")).to_contain_text(path.name)
    page.click("#begin")
    expect(page.locator("#line")).to_contain_text(f"{path.name}, ")
    with page.expect_download() as download:
        page.click("#download")
    saved = folder / download.value.suggested_filename
    download.value.save_as(saved)
    return saved


def assert_not_wider_than_the_window(page):
    """On a desk, and on a telephone."""
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def fetched(page, image):
    """An image of the page, as it came."""
    response = page.request.get(image.get_attribute("src"))
    assert response.ok
    return response.body()


def opened(content, folder):
    path = folder / "fetched.png"
    path.write_bytes(content)
    return np.asarray(Image.open(path))


def test_upscaling(page, photo, model_file, tmp_path):
    expect(page.locator("#begin")).to_be_disabled()
    saved = upscale(page, photo, tmp_path)
    assert saved.name == "astronaut_x2.png"
    pixels = np.asarray(Image.open(photo))
    expected = andfast.upscale_image(pixels, model_file, device="cpu")
    assert np.array_equal(np.asarray(Image.open(saved)), expected)
    expect(page.locator("#read")).to_have_text("astronaut.png: 150 x 120 pixels, RGB, 8 bits")
    expect(page.locator("#line")).to_contain_text("150 x 120 → 300 x 240 pixels, RGB, 8 bits; ")
    expect(page.locator("#line")).to_contain_text("by tiny on cpu in float32")

    before, after = page.locator("#slider img").all()
    assert np.array_equal(opened(fetched(page, after), tmp_path), expected)
    interpolated = Image.fromarray(pixels).resize((300, 240), Image.Resampling.BICUBIC)
    assert np.array_equal(opened(fetched(page, before), tmp_path), np.asarray(interpolated))
    boxes = [image.bounding_box() for image in (before, after)]
    assert boxes[0] == boxes[1]

    # The handle moves what is cut off the one above.
    expect(after).to_have_css("clip-path", re.compile(r"inset\(0px 0px 0px 50%\)"))
    handle = page.locator("#slider [data-testid=slider] .icon-wrap").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(boxes[0]["x"] + 0.2 * boxes[0]["width"], handle["y"], steps=5)
    page.mouse.up()
    expect(after).to_have_css("clip-path", re.compile(r"inset\(0px 0px 0px (19|2[01])[.\d]*%\)"))

    page.mouse.move(boxes[0]["x"] + 0.6 * boxes[0]["width"], handle["y"])
    page.mouse.wheel(0, -300)
    expect(after).not_to_have_css("transform", "matrix(1, 0, 0, 1, 0, 0)")
    assert_not_wider_than_the_window(page)


def test_other_files_and_scales(page, model_file, tmp_path):
    """16 bits, alpha and a profile through the browser and back, at a scale that is typed."""
    pixels = noise(20, 30, 4, np.uint16)
    write_picture(tmp_path / "deep.tif", Picture(pixels, SRGB))
    scale = page.locator("#scale input")
    scale.fill("1.5")
    scale.press("Enter")
    found = read_picture(upscale(page, tmp_path / "deep.tif", tmp_path))
    assert found.icc == SRGB
    assert np.array_equal(found.pixels, andfast.upscale_image(pixels, model_file, 1.5, device="cpu"))


def test_several_files(page, model_file, photo, tmp_path):
    """One archive of all results in the format that is chosen; each can be looked at. Damaged ones are named."""
    turned, damaged = tmp_path / "turned.jpg", tmp_path / "damaged.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).crop((0, 0, 60, 40)).save(turned, quality=95, exif=exif)
    damaged.write_bytes(photo.read_bytes()[:2000])
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"no image")
    upload(page, photo, damaged, empty, turned)
    expect(page.get_by_test_id("toast-body")).to_contain_text("empty.png: not an image")
    expect(page.locator("#read li")).to_have_text(
        ["astronaut.png: 150 x 120 pixels, RGB, 8 bits", "damaged.png: 150 x 120 pixels", "turned.jpg: 40 x 60 pixels"]
    )
    expect(page.locator("#quality")).to_have_count(0)
    choose(page, "format", "JPEG")
    number = page.locator("#quality input[type=number]")
    number.fill("90")
    number.press("Tab")
    page.click("#begin")
    expect(page.locator("#line")).to_contain_text("astronaut.png, 150 x 120 → 300 x 240")
    expect(page.get_by_test_id("toast-body").filter(has_text="damaged.png: ")).to_have_count(1)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "upscaled.zip"
    download.value.save_as(tmp_path / "upscaled.zip")
    with zipfile.ZipFile(tmp_path / "upscaled.zip") as file:
        assert file.namelist() == ["astronaut_x2.jpg", "turned_x2.jpg"]
        file.extractall(tmp_path)
    for source, result in ((photo, "astronaut_x2.jpg"), (turned, "turned_x2.jpg")):
        expected = andfast.upscale_image(read_picture(source).pixels, model_file, device="cpu")
        write_picture(tmp_path / "expected.jpg", Picture(expected), 90)
        assert np.array_equal(read_picture(tmp_path / result).pixels, read_picture(tmp_path / "expected.jpg").pixels)

    choose(page, "shown", "turned_x2.jpg")
    expect(page.locator("#line")).to_contain_text("turned.jpg, 40 x 60 → 80 x 120")
    after = page.locator("#slider img").last
    expect(after).to_have_js_property("naturalWidth", 80)
    assert np.array_equal(opened(fetched(page, after), tmp_path), expected)
    assert_not_wider_than_the_window(page)
    page.locator("#upload [aria-label=Clear]").click()
    upload(page, turned)
    expect(page.locator("#read")).to_have_text("turned.jpg: 40 x 60 pixels, RGB, 8 bits")
    expect(page.locator("#shown")).to_have_count(0)


def test_a_scale_that_is_none(page, served, photo):
    """It is said, and leaves no folder behind."""
    _, _, own = served
    folders = {path for path in own.glob("andfast-demo-*/tmp*") if path.is_dir()}
    upload(page, photo)
    scale = page.locator("#scale input")
    scale.fill("two")
    scale.press("Enter")
    page.click("#begin")
    expect(page.get_by_test_id("toast-body")).to_contain_text("the output scale is a number such as 3 or 2.5")
    assert {path for path in own.glob("andfast-demo-*/tmp*") if path.is_dir()} == folders


def test_the_adversary(page, photo, tmp_path):
    page.get_by_role("tab", name="The adversary").click()
    expect(page.locator("#attack")).to_be_disabled()
    upload(page, photo)
    for name, value in (("budget", "26"), ("steps", "1"), ("crop", "64")):
        field = page.locator(f"#{name} input[type=number]")
        field.fill(value)
        field.press("Tab")
    page.get_by_label("brightness and colour").check()
    page.click("#attack")
    expect(page.locator("#numbers table")).to_be_visible()
    rows = [row.split("\t") for row in page.locator("#numbers tr").all_inner_texts()]
    assert [row[0].strip() for row in rows[1:]] == ["LR-PSNR, dB", "loss (L1)", "restoration's PSNR-Y, dB"]
    assert 25.9 < float(rows[1][2]) < 29
    assert float(rows[2][1]) < float(rows[2][2])
    assert float(rows[3][1]) > float(rows[3][2])
    assert [label.split("\n")[0] for label in page.locator("#cells figcaption").all_inner_texts()] == [
        "HR", "clean LR", "attacked LR", "colour alone", "blur alone", "noise alone", "slopes alone",
        "SR of clean LR", "SR of attacked LR",
    ]  # fmt: skip
    for image in page.locator("#restored img").all():
        assert opened(fetched(page, image), tmp_path).shape == (64, 64, 3)
    expect(page.locator("#command")).to_contain_text("python -m andfast.degrade astronaut.png --output pairs-")
    expect(page.locator("#command")).to_contain_text("--attack.psnr_range '[26, 26]'")
    assert_not_wider_than_the_window(page)
    page.get_by_label("brightness and colour").uncheck()
    for name in ("blur and ringing", "noise", "slopes of the activations"):
        page.get_by_label(name, exact=True).uncheck()
    page.click("#attack")
    expect(page.get_by_test_id("toast-body")).to_contain_text("choose at least one")


def test_an_example(page):
    page.locator("#examples button").last.click()
    # Of more pixels than this page takes.
    expect(page.get_by_test_id("toast-body")).to_contain_text(
        re.compile(r"coffee\.png: 600 x 400 pixels; more than 20000 are refused")
    )
    expect(page.locator("#begin")).to_be_disabled()


def test_a_file_larger_than_any_image(page, tmp_path):
    """It is not taken, and not kept."""
    (tmp_path / "large.png").write_bytes(bytes(2**21))
    upload(page, tmp_path / "large.png")
    expect(page.get_by_test_id("toast-body")).to_contain_text("maximum")
    expect(page.locator("#begin")).to_be_disabled()


def test_one_file_after_the_other(page, photo, tmp_path):
    """However soon the next one comes, it is the one that is read."""
    for number in range(4):
        path = tmp_path / f"{number}.png"
        path.write_bytes(photo.read_bytes())
        upload(page, path)
        if number < 3:
            page.locator("#upload [aria-label=Clear]").click()
    expect(page.locator("#read")).to_contain_text("3.png")
    expect(page.locator("#begin")).to_be_enabled()


def test_names_that_are_markdown(page, photo, tmp_path):
    """They are shown as they are."""
    named = tmp_path / "1. __a__ [b](c).png"
    named.write_bytes(photo.read_bytes())
    upload(page, named)
    expect(page.locator("#read")).to_have_text("1. __a__ [b](c).png: 150 x 120 pixels, RGB, 8 bits")
    page.click("#begin")
    expect(page.locator("#line")).to_contain_text("1. __a__ [b](c).png, 150 x 120")


def test_damaged_files(page, photo, tmp_path):
    """They are told apart from good ones, whose results go, and the page goes on."""
    upscale(page, photo, tmp_path)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(photo.read_bytes()[:2000])
    page.locator("#upload [aria-label=Clear]").click()
    upload(page, damaged)
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("damaged.png: ")
    text = toast.inner_text()
    assert "Traceback" not in text
    assert "/" not in text
    expect(page.locator("#seen img")).to_have_count(0)
    expect(page.locator("#slider img")).to_have_count(0)
    expect(page.locator("#begin")).to_be_disabled()
    page.locator("#upload [aria-label=Clear]").click()
    upscale(page, photo, tmp_path)


def begin_long_attack(page, path):
    """Begin what takes seconds, and return when it computes."""
    page.locator("#model input").click()
    page.get_by_role("option", name="andnet_compact_x4").click()  # the slower one
    page.get_by_role("tab", name="The adversary").click()
    upload(page, path)
    steps = page.locator("#steps input[type=number]")
    steps.fill("12")
    steps.press("Tab")
    page.click("#attack")
    expect(page.locator("#restored")).to_contain_text("%")


def test_two_at_once(page, served, photo, tmp_path):
    """The second one waits, though it is of the other tab, and then gets its own result."""
    other = page.context.new_page()
    other.set_default_timeout(1000 * PATIENCE)
    other.goto(served[1])
    half = tmp_path / "half.png"
    Image.open(photo).crop((0, 0, 70, 60)).save(half)
    upload(other, half)
    expect(other.locator("#begin")).to_be_enabled()
    begin_long_attack(page, photo)
    other.click("#begin")
    expect(other.locator("#slider")).to_contain_text("queue")
    expect(other.locator("#line")).to_contain_text("half.png, 70 x 60 → 140 x 120")
    expect(page.locator("#numbers table")).to_be_visible()


def test_another_image_while_one_is_attacked(page, photo, tmp_path):
    """What is found of the first one never comes to stand under the second."""
    begin_long_attack(page, photo)
    second = tmp_path / "second.png"
    second.write_bytes(photo.read_bytes())
    page.locator("#upload [aria-label=Clear]").click()
    upload(page, second)
    expect(page.locator("#read")).to_contain_text("second.png")
    page.evaluate(
        """() => new MutationObserver(() => window.found = window.found || !!document.querySelector("#numbers table"))
        .observe(document.body, {childList: true, subtree: true})"""
    )
    # Computed after the first one, as only one is at a time.
    page.get_by_role("tab", name="Upscale").click()
    page.click("#begin")
    expect(page.locator("#line")).to_contain_text("second.png, 150 x 120")
    page.get_by_role("tab", name="The adversary").click()
    expect(page.locator("#restored")).not_to_contain_text("%")
    assert not page.evaluate("window.found")
    expect(page.locator("#numbers")).to_have_text("Choose an image and press Attack: numbers and images come here.")
    page.locator("#steps input[type=number]").fill("1")
    page.click("#attack")
    expect(page.locator("#command")).to_contain_text("andfast.degrade second.png")


def test_the_end(served, browser, photo):
    """Last: Ctrl-C ends the command, whatever it computes; it leaves nothing behind and has said nothing else."""
    run, url, own = served
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        begin_long_attack(page, photo)
        assert list(own.glob("andfast-demo-*"))
        run.send_signal(signal.SIGINT)
        out, error = run.communicate(timeout=PATIENCE)
    assert (out, error, run.returncode) == ("closed\n", "", 0)
    assert not list(own.glob("andfast-demo-*"))
