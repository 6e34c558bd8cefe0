"""The `andfast` script, and the parser of the commands."""

import subprocess
import sys

import pytest
from documents import ROOT

from andfast.utils.command_line import COMMANDS, make_parser, run_command, whole


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point of pyproject.toml as the script that pip installs does."""
    (entry,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith('andfast = "')]
    module, function = entry.removeprefix("andfast = ").strip('"').split(":")
    program = f"import sys; from {module} import {function}; sys.exit({function}())"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def test_it_runs_the_command(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    done = script("upscale", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()  # without a warning of Python's about how it was started
    assert line.startswith(f"failed: {tmp_path / 'a.png'}: ")
    assert "0 of 1 image upscaled" in done.stdout


def test_it_passes_options_and_the_status(capsys):
    with pytest.raises(SystemExit) as end:
        run_command(["export", "--half", "--wrong"])
    assert end.value.code == 2
    assert "usage: python -m andfast.export" in capsys.readouterr().err


def test_it_imports_the_chosen_command_alone():
    program = (
        "import sys\nfrom andfast.utils.command_line import run_command\n"
        "try:\n    run_command(['export', '--help'])\n"
        "finally:\n    print(sorted(name for name in sys.modules if name.startswith(('andfast.train', 'andfast.eval',"
        " 'andfast.degrade', 'andfast.plot', 'andfast.demo', 'gradio'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_commands(capsys, option):
    assert run_command([option]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name:<12}{text}\n" in listed for name, text in COMMANDS.items())


@pytest.mark.parametrize(("arguments", "message"), [([], "give a command"), (["trian"], "trian is no command")])
def test_without_a_command_they_are_listed(capsys, arguments, message):
    assert run_command(arguments) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"error: {message}\n")
    assert all(f"\n  {name} " in error for name in COMMANDS)


def test_wrong_options_end_with_status_2(capsys):
    parser = make_parser("andfast.test")
    parser.add_argument("--size", type=whole(1, 9))
    assert parser.parse_args(["--size", "4"]).size == 4
    for value, message in (("0", "0 is not from 1 to 9"), ("x", "invalid whole number value: 'x'")):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(["--size", value])
        assert end.value.code == 2
        assert f"error: argument --size: {message}" in capsys.readouterr().err
