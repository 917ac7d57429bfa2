"""A headless browser for pages that are opened as files or served here: `browser` opens, runs and records."""

import os

import pytest

from tests.app.test_model import FIELDS
from tests.browser import app_page
from tests.browser.browsers import BROWSERS, Browser


@pytest.fixture(scope="session")
def browser():
    """Chromium, or the browser that the environment variable DDPM_JAX_TEST_BROWSER names; it reaches no host."""
    name = os.environ.get("DDPM_JAX_TEST_BROWSER") or "chromium"
    if name not in BROWSERS:
        pytest.exit(f"DDPM_JAX_TEST_BROWSER is {name!r}: choose one of {', '.join(BROWSERS)}", returncode=2)
    opened: Browser = BROWSERS[name]()
    try:
        yield opened
    finally:
        opened.driver.quit()


@pytest.fixture(scope="session")
def app_folder(tmp_path_factory):
    """A run with classes."""
    return app_page.train(tmp_path_factory.mktemp("app") / "run", FIELDS)


@pytest.fixture(scope="session")
def app_address(app_folder, repository, tmp_path_factory):
    """The page of --mode=app of `app_folder`."""
    with app_page.serve(app_folder, repository, tmp_path_factory.mktemp("temporary")) as address:
        yield address
