"""Sphinx extension: links between pages work on the site as they do on GitHub, also to files outside docs/.

`repository_pages` (conf.py) maps files of the repository to pages of the site. These are copied into the source folder
before the build, and links to them lead to the copies. Links to other files outside docs/, such as `configs/cifar10.py`,
become downloads.
"""

import os
import pathlib
import re

LINK = re.compile(r"(\]\()([^)#\s]+)")  # of Markdown: [text](target) and ![text](target); targets with a scheme are skipped


def rewrite_links(text: str, source: pathlib.Path, page: pathlib.Path, moved: dict[pathlib.Path, pathlib.Path]) -> str:
    """Returns `text`, written as the file `source`, with relative links that lead to the same files from the file `page`.

    Links to a key of `moved` lead to its value. A link to a file that does not exist stays: Sphinx reports it.
    """

    def new_target(match: re.Match[str]) -> str:
        if "://" in match[2] or match[2].startswith(("mailto:", "attachment:")):
            return match[0]
        target = pathlib.Path(os.path.normpath(source.parent / match[2]))
        target = moved.get(target, target)
        return match[1] + pathlib.Path(os.path.relpath(target, page.parent)).as_posix()

    return LINK.sub(new_target, text)


def moved_pages(app) -> dict[pathlib.Path, pathlib.Path]:
    """Absolute path in the repository -> absolute path of the page's copy."""
    return {app.srcdir.parent / file: app.srcdir / page for file, page in app.config.repository_pages.items()}


def copy_pages(app):
    """Writes the copies. One whose text is the same keeps its date, so that Sphinx does not read it again."""
    moved = moved_pages(app)
    for source, page in moved.items():
        text = rewrite_links(source.read_text(), source, page, moved)
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def rewrite_page(app, docname, content):
    """Leads the links of a page in docs/ to the copies."""
    page = pathlib.Path(app.env.doc2path(docname))
    moved = moved_pages(app)
    if page.suffix == ".md" and page not in moved.values():
        content[0] = rewrite_links(content[0], page, page, moved)


def setup(app):
    app.add_config_value("repository_pages", {}, "env")
    app.connect("builder-inited", copy_pages, priority=100)  # before autosummary, which reads all sources
    app.connect("source-read", rewrite_page)
    return {"parallel_read_safe": True}
