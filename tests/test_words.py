"""Code, messages, tests and docs use the standard terms of the field, not the words of this list."""

import io
import json
import keyword
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATTERNS = ("*.md", "*.py", "configs/*.py", "ddpm_jax/**/*.py", "docs/*.md", "docs/*.py", "tests/**/*.py", "benchmarks/*.py")
FILES = sorted(
    file
    for pattern in (*PATTERNS, "notebooks/*.ipynb", ".github/**/*.md")
    for file in ROOT.glob(pattern)
    if file != pathlib.Path(__file__).resolve()
)
IMAGE = r"((an? |the |new |more |all |its |your |\d+ )?(images?|samples?|pictures?|digits?|grids?|photographs?))"
WORDS = {  # regular expression -> standard words
    r"persons?": "user",
    r"mend(s|ed|ing)?": "fix",
    r"anew": "again",
    r"(go|goes|going|went|gone) on": "continue, resume",
    r"tell|tells|told|telling": "report, print, log, state",
    r"says|said|saying": "state, print; a message is ...",
    r"nobody|whoever|somebody|anybody": "no one, users who",
    r"((the|this|our) house|which floor|(upper|lower|top|ground|same|own) floors?)": "architecture, layer",
    r"stands|stood|stand (in|on|for|beside|still|there)": "is, represents",
    r"lies|(lie|lay|lying) (in|on|at|beside|below|above|between|within|outside)": "is",
    r"stretch(es|ed)?": "chunk, segment",
    r"quicker|quickest": "faster, fastest",
    r"in place of": "instead of",
    r"whole numbers?": "integer",
    r"(?<!random )walk(s|ed|ing)?": "traverse, iterate",
    r"pieces?": "part, chunk",
    r"is no (image|number|list|way|longer one|such thing|sampler|digit|defect|error|vector|file)s?": "is not a",
    r"for want of|by way of|of one's own|but for|for ever": "without, through, custom, except, forever",
    r"(where|if) need be": "if necessary",
    rf"(draws?|drawn|drew) {IMAGE}": "generate",
    rf"{IMAGE} ((that )?(are|is|was|were) )?drawn": "generated",
    r"PersonError|said_of_flags|FlowMeter|BoundMeter|make_guess": "the current name",
    r"grey|colours?|centres?|centred|neighbours?|normalise[sd]?|optimisation": "American spelling",
}
OF = re.compile(r'(^|[.:!?] |["#]\s*)Of (?!course)[a-z]')  # a sentence that begins with "Of"


def prose(file: pathlib.Path) -> list[tuple[int, str]]:
    """(line number, text) of comments, strings and names of Python files, and of all lines of other files.

    Underscores separate the words of a name. Attributes, such as `ast.walk`, may belong to other libraries and are ignored.
    """
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        return [(0, line) for cell in json.loads(text)["cells"] for line in cell["source"]]
    if file.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    lines, previous = [], ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)):
            lines += [(token.start[0] + number, line) for number, line in enumerate(token.string.splitlines())]
        elif token.type == tokenize.NAME and previous != "." and not keyword.iskeyword(token.string):
            lines.append((token.start[0], token.string.strip("_").replace("_", " ")))
        previous = token.string
    return lines


@pytest.fixture(scope="module")
def text():
    """All lines: (place, text)."""
    return [(f"{file.relative_to(ROOT)}:{number}", line) for file in FILES for number, line in prose(file)]


def test_comments_strings_and_names_are_read(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""One.\n\nTwo."""\nthree_four = math.floor(1)  # five\n')
    assert sorted(prose(file)) == [(1, '"""One.'), (2, ""), (3, 'Two."""'), (4, "# five"), (4, "math"), (4, "three four")]


@pytest.mark.parametrize("word", WORDS, ids=WORDS.values())
def test_standard_words(text, word):
    pattern = re.compile(rf"(?<![\w.`-])(?:{word})(?![\w-])", re.IGNORECASE)
    found = [f"{place}: {line.strip()[:120]}" for place, line in text if pattern.search(line)]
    assert not found, f"write {WORDS[word]} instead:\n" + "\n".join(dict.fromkeys(found))


def test_sentences_do_not_begin_with_of(text):
    found = [f"{place}: {line.strip()[:120]}" for place, line in text if OF.search(line)]
    assert not found, "put the subject first:\n" + "\n".join(found)
