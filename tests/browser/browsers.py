"""The browsers in which tests/browser can run, each with one tab: what a page logs, requests and computes."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable

from selenium import webdriver
from selenium.webdriver.remote.webdriver import WebDriver

TIMEOUT_S = 120
CHROMIUM_OPTIONS = (
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
# As the rules of Chromium, by a function that chooses a proxy; nothing listens at port 9.
PROXY = 'function FindProxyForURL(url, host) { return host === "127.0.0.1" ? "DIRECT" : "PROXY 127.0.0.1:9"; }'
FIREFOX_PREFERENCES = {
    "network.proxy.type": 2,
    "network.proxy.autoconfig_url": f"data:text/javascript,{PROXY}",
    "network.proxy.allow_hijacking_localhost": True,  # else `localhost` is reached directly
}


class Browser:
    """A tab of a browser.

    Attributes:
      driver: selenium's driver.
    """

    def __init__(self, driver: WebDriver):
        self.driver = driver
        driver.set_script_timeout(TIMEOUT_S)

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
        """What the page wrote to the console since the last call, with errors of loading where the browser reports them."""
        raise NotImplementedError

    def requests(self) -> list[str]:
        """What the page requested since the last call, except itself and its own blobs: none, for a page of one file."""
        raise NotImplementedError

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the page this size in CSS pixels, and a light or dark color scheme."""
        raise NotImplementedError


class Chromium(Browser):
    """Headless Chromium or Chrome."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium", "google-chrome")
        for option in CHROMIUM_OPTIONS:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = program("chromedriver", folder="CHROMEWEBDRIVER")
        super().__init__(webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)))

    def console(self) -> list[str]:
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return outside(params["request"]["url"] for params in sent if params.get("type") != "Document")

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


class Firefox(Browser):
    """Headless Firefox. What it logs and requests comes as events of WebDriver BiDi."""

    def __init__(self) -> None:
        options = webdriver.FirefoxOptions()
        options.binary_location = program("firefox-esr", "firefox")
        options.add_argument("-headless")
        options.add_argument("-remote-allow-system-access")  # for the color scheme, which is a preference
        options.set_capability("webSocketUrl", True)
        for name, value in FIREFOX_PREFERENCES.items():
            options.set_preference(name, value)
        driver = program("geckodriver", folder="GECKOWEBDRIVER")
        super().__init__(webdriver.Firefox(options=options, service=webdriver.FirefoxService(driver)))
        self._console: list[str] = []
        self._requests: list[str] = []
        self.driver.script.add_console_message_handler(lambda entry: self._console.append(f"{entry.level}: {entry.text}"))
        self.driver.script.add_javascript_error_handler(lambda entry: self._console.append(f"{entry.level}: {entry.text}"))
        self.driver.network.add_event_handler("before_request", self._record)

    def _record(self, event: dict) -> None:
        if event["navigation"] is None:
            self._requests.append(event["request"]["url"])

    def console(self) -> list[str]:
        found, self._console = self._console, []
        return found

    def requests(self) -> list[str]:
        found, self._requests = self._requests, []
        return outside(found)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        context = self.driver.current_window_handle
        self.driver.browsing_context.set_viewport(context=context, viewport={"width": width, "height": height})
        with self.driver.context(self.driver.CONTEXT_CHROME):
            scheme = "Services.prefs.setIntPref('layout.css.prefers-color-scheme.content-override', arguments[0])"
            self.driver.execute_script(scheme, 0 if dark else 1)


BROWSERS = {"chromium": Chromium, "firefox": Firefox}


def program(*names: str, folder: str = "") -> str:
    """The first of these programs on the PATH, or in the folder that an environment variable names, as on GitHub's machines."""
    for found in map(shutil.which, names):
        if found:
            return found
    if folder in os.environ:
        return os.path.join(os.environ[folder], names[0])
    raise FileNotFoundError(f"{' or '.join(names)} is missing: see `make test-browser` in CONTRIBUTING.md")


def outside(urls: Iterable[str]) -> list[str]:
    """Without the blobs and data of a page itself."""
    return [url for url in urls if not url.startswith(("blob:", "data:"))]
