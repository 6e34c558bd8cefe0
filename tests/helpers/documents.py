"""What the Markdown pages, and the comments of configurations, tell a reader to type."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("andfast/pretrained/*.md")])
# In the order in which a user meets them: what one page makes another may take up.
PAGES.sort(key=lambda page: (page.name != "README.md", page.name != "guide.md"))
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """Text that stands in a file.

    Attributes:
        file: relative to the repository.
        line: of its beginning, from 1.
        text: of a command, without line breaks and without a comment behind it.
    """

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def words(self) -> list[str]:
        """A command's words, as a shell would divide them."""
        return shlex.split(self.text, comments=True)


def blocks(page: Path, *languages: str) -> list[Snippet]:
    """The fenced blocks of a page in one of the languages."""
    text = page.read_text()
    found = [match for match in _FENCED.finditer(text) if match[1] in languages]
    return [_snippet(page, text, match.start(2), match[2]) for match in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks; lines keep their numbers."""
    return _FENCED.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())


def commands() -> list[Snippet]:
    """Every command of all pages' shell blocks and running text, then those in comments of configurations."""
    found = []
    for page in PAGES:
        shell = [line for block in blocks(page, "bash", "sh", "shell", "console") for line in _lines(block)]
        inline = re.finditer(r"`((?:\S*/)?python (?:-m |\w+/)[^`]+)`", prose(page))
        shell += [_snippet(page, prose(page), match.start(1), " ".join(match[1].split())) for match in inline]
        found += sorted(shell, key=lambda command: command.line)
    for path in CONFIGS:
        comments = "\n".join(re.sub(r"^# ?|^[^#].*", "", line) for line in path.read_text().splitlines())
        indented = re.finditer(r"^  (\S(?:.*\\\n)*.*)", comments, re.MULTILINE)
        found += [_snippet(path, comments, match.start(1), _joined(match[1])) for match in indented]
    return found


def _lines(block: Snippet) -> list[Snippet]:
    """A block's commands, of which several may stand in a line."""
    found, line = [], block.line
    for text in re.findall(r"(?:.*\\\n)*.*\n", block.text):
        parts = [part.strip() for part in _joined(text).split(" && ")]
        found += [Snippet(block.file, line, part) for part in parts if part and not part.startswith("#")]
        line += text.count("\n")
    return found


def _joined(text: str) -> str:
    return re.sub(r"\s*\\\n\s*", " ", text).strip()


def _snippet(path: Path, text: str, start: int, content: str) -> Snippet:
    return Snippet(path.relative_to(ROOT).as_posix(), text.count("\n", 0, start) + 1, content)
