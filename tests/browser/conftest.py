"""A headless browser for pages that are opened as files or served here: `browser` opens, runs and records."""

import os

import pytest

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
