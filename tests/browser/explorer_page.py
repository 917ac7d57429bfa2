"""What the tests of the explorer page share."""

import pathlib

from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.browsers import Browser


def open_explorer(browser: Browser, file: pathlib.Path) -> None:
    """Open the page, unless it is open already, and wait until it is ready."""
    if browser.driver.current_url == file.as_uri():
        return
    browser.resize(1200, 900)
    browser.open(file)
    WebDriverWait(browser.driver, 60).until(lambda driver: driver.execute_script("return globalThis.ddpmExplorer?.ready"))
