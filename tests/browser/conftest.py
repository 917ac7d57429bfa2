"""A headless browser for pages that are opened as files or served here: `browser` opens, runs and records."""

import json
import os
import pathlib
import shutil

import pytest
from selenium import webdriver

from tests.app.test_model import FIELDS
from tests.browser import app_page

PROGRAMS = ("chromium", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which root lacks, in a container
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no page reaches another machine
    "--enable-unsafe-swiftshader",  # WebGL without a GPU, for the editor of images
)
TIMEOUT_S = 120


class Browser:
    """A tab of the browser.

    Attributes:
      driver: selenium's driver.
    """

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, page: pathlib.Path) -> None:
        """Open a file, and forget what earlier pages logged and requested."""
        self.driver.get("about:blank")
        self.console(), self.requests()
        self.driver.get(page.as_uri())

    def run(self, body: str, *arguments):
        """Run the body of an async function with `arguments` as `args`; returns what it returns, raises what it throws."""
        outcome = self.driver.execute_async_script(
            "const args = [...arguments], done = args.pop();"
            f"(async () => {{ {body} }})().then((value) => done({{value}}), (error) => done({{error: String(error)}}));",
            *arguments,
        )
        if "error" in outcome:
            raise RuntimeError(outcome["error"])
        return outcome.get("value")

    def console(self) -> list[str]:
        """What the page wrote to the console since the last call, errors of loading included."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What the page requested since the last call, except itself and its own blobs: none, for a page of one file."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent if params.get("type") != "Document"]
        return [url for url in urls if not url.startswith(("blob:", "data:"))]

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the page this size in CSS pixels, and a light or dark color scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium or Chrome that reaches no host."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, PROGRAMS)))
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver_program = shutil.which("chromedriver") or os.path.join(os.environ["CHROMEWEBDRIVER"], "chromedriver")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    driver.set_script_timeout(TIMEOUT_S)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def app_folder(tmp_path_factory):
    """A run with classes."""
    return app_page.train(tmp_path_factory.mktemp("app") / "run", FIELDS)


@pytest.fixture(scope="session")
def app_address(app_folder, repository, tmp_path_factory):
    """The page of --mode=app of `app_folder`."""
    with app_page.serve(app_folder, repository, tmp_path_factory.mktemp("temporary")) as address:
        yield address
