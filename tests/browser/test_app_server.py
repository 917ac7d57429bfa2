"""The server of --mode=app as a process: Ctrl-C during a job, a proxy in the environment, restarts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from selenium.webdriver.common.by import By

from tests.browser.app_page import Page, serve
from tests.browser.app_server import ENDLESS

STOPS_S = 5


def test_ctrl_c_ends_a_job_and_the_server(app_folder, repository, tmp_path):
    """Also where the environment names a proxy, which does not reach this machine."""
    proxies = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | proxies | {"TMPDIR": str(temporary)}
    command = [sys.executable, "main.py", f"--workdir={app_folder}", "--mode=app"]
    with subprocess.Popen(
        command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            address = process.stdout.readline().removeprefix("the page is at ").partition(" ")[0]
            url = f"{address}gradio_api/call/generate"
            data = [64, "3", 0, "ancestral", 100, "leading", 0.0, 1.0, "ema", "4"]
            headers = {"Content-Type": "application/json"}
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(urllib.request.Request(url, json.dumps({"data": data}).encode(), headers)) as response:
                event = json.load(response)["event_id"]
            with direct.open(f"{url}/{event}") as stream:
                assert next(line for line in stream if b"step 1" in line)
                begun = time.monotonic()
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 0
                assert time.monotonic() - begun < STOPS_S
        finally:
            process.kill()
        assert process.stderr.read() == ""
    assert list(temporary.iterdir()) == []


def test_a_page_whose_server_restarts_is_loaded_again(browser, app_folder, repository, tmp_path):
    """Also if it had a job in progress. At a port of its own, since other tests start servers beside it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with serve(app_folder, repository, tmp_path, port) as address:
        page = Page(browser, address)
        page.set_seed(ENDLESS)
        page.press("generate-run")
        page.shows("step 1")
    page.shows("Connection to the server was lost")
    with serve(app_folder, repository, tmp_path, port):
        page.until(lambda driver: "lost" not in driver.find_element(By.TAG_NAME, "body").text)
        page.until(lambda driver: driver.find_elements(By.ID, "generate-run"))
        page.set_seed(1)
        page.press("generate-run")
        page.shows("16 images · 8 network evaluations each")
