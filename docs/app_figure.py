"""Saves a picture of the page of --mode=app in headless Chromium, which generates images.

Needs the packages of requirements-browser.txt, Chromium and chromedriver. Usage:

    python docs/app_figure.py --workdir=runs/digits --output=FOLDER
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import time

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE = (1100, 740)  # above the call in Python, which has the path of the run
TIMEOUT_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="a trained run")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for app.png")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "main.py", f"--workdir={options.workdir}", "--mode=app"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            lines = (re.search(r"the page is at (\S+)", line) for line in server.stdout or ())
            screenshot(next(filter(None, lines))[1], options.output / "app.png")
        finally:
            server.terminate()


def screenshot(address: str, file: pathlib.Path) -> None:
    """Saves the page after it has generated images twice: the first time it compiles."""
    chromium = webdriver.ChromeOptions()
    chromium.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        chromium.add_argument(option)
    driver = webdriver.Chrome(options=chromium, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(address)
        wait = WebDriverWait(driver, TIMEOUT_S)
        wait.until(lambda driver: driver.find_elements(By.ID, "generate-run"))
        time.sleep(2)  # until the page takes clicks
        for _ in range(2):
            driver.find_element(By.ID, "generate-run").click()
            time.sleep(1)
            wait.until(lambda driver: re.search(r"images · \d", driver.find_element(By.TAG_NAME, "body").text))
        time.sleep(2)  # until the pictures are loaded
        driver.save_screenshot(file)
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
