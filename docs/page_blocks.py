"""Runs the Python blocks of pages and compares their output with the blocks `text` below them, or writes it there.

python docs/page_blocks.py docs/how-ddpm-works.md            # exit code 1 if an output differs
python docs/page_blocks.py --update docs/exercises.md        # writes the outputs into the page

The blocks of a page run in one session, in the current folder, top to bottom. Only a block `text` that follows a Python block
directly is its output.
"""

import argparse
import contextlib
import io
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.DOTALL | re.MULTILINE)


class Executed(NamedTuple):
    """A Python block of a page: its code, the output in the page (None without one), and what it printed now."""

    code: str
    stated: str | None
    printed: str


def execute(
    text: str, name: str, replace: Callable[[str], str] = str, names: dict[str, Any] | None = None
) -> Iterator[Executed]:
    """Runs the blocks of a page in turn; `replace` may change the code of a block first, and `names` are their variables."""
    names = {} if names is None else names
    for match in BLOCK.finditer(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(replace(match["code"]), name, "exec"), names)
        yield Executed(match["code"], match["output"], printed.getvalue())


def updated(text: str, executed: list[Executed]) -> str:
    """The page with the printed outputs."""
    blocks = iter(executed)

    def block(_: re.Match) -> str:
        code, _, printed = next(blocks)
        return f"```python\n{code}```\n" + (f"\n```text\n{printed}```\n" if printed else "")

    return BLOCK.sub(block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=pathlib.Path)
    parser.add_argument("--update", action="store_true", help="write the outputs into the pages")
    options = parser.parse_args()
    stale = []
    for page in options.pages:
        text = page.read_text()
        executed = list(execute(text, page.name))
        stale += [f"{page}: {block.code.splitlines()[0]}" for block in executed if (block.stated or "") != block.printed]
        if options.update:
            page.write_text(updated(text, executed))
    if stale and not options.update:
        print("other outputs in the pages than those of the blocks that begin with", *stale, sep="\n", file=sys.stderr)
    return int(bool(stale) and not options.update)


if __name__ == "__main__":
    sys.exit(main())
