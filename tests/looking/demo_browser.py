#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The demo in a headless Chromium: for its tests, and for the screenshots in the documentation.

python tests/looking/demo_browser.py --model outputs/imdb --text "A rare film." --screenshot docs/demo_text.png
python tests/looking/demo_browser.py --model outputs/cifar10 --image cat.png --screenshot docs/demo_image.png
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait


ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
OPTIONS = (  # the last ones: nothing but the page goes over the network, and root may run it in a container
    *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-sandbox"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
SECONDS = 120  # until the page is there, and until the model has answered
BUTTON = "//button[normalize-space()='Classify']"


@contextlib.contextmanager
def serving(*command, cwd=ROOT, environment=None):
    """Runs a demo in a process of its own, on a free port, and ends it in any case.

    Gives a function that waits until the demo answers, and returns its address.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), **(environment or {})}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=environment, stdout=log, stderr=log)

        def wait():
            deadline = time.monotonic() + SECONDS
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"the demo did not start:\n{log.read()}")
                time.sleep(0.2)
            return address

        try:
            yield wait
        finally:
            process.kill()
            process.wait()


def _answers(address):
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5).status == 200
    except OSError:
        return False


@contextlib.contextmanager
def browser(width=1180, height=1000):
    """A new Chromium that reaches this machine only."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def wait_for(driver, what, condition):
    """What a condition on the driver returns, once that is true; TimeoutException tells what was waited for."""
    return WebDriverWait(driver, SECONDS, poll_frequency=0.1).until(condition, what)


def open_demo(driver, address):
    for log in ("browser", "performance"):
        driver.get_log(log)  # what was before is forgotten
    driver.get(address)
    wait_for(driver, "the button", lambda d: d.find_elements(By.XPATH, BUTTON))


def classify(driver, text=None, image=None):
    """Enters a text and presses the button, or uploads an image."""
    if image is not None:
        driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(Path(image).resolve()))
        return
    box = driver.find_element(By.TAG_NAME, "textarea")
    box.clear()
    box.send_keys(text)
    driver.find_element(By.XPATH, BUTTON).click()


def answer(driver):
    """Labels and percentages of the answer, as shown."""
    rows = driver.find_elements(By.CSS_SELECTOR, "[data-testid$='-confidence-set']")
    return dict(row.text.split("\n") for row in rows)


def hints(driver):
    """The tooltips of tokens or patches, in order."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.calcium-text span')].map(x => x.title)"
        ".concat([...document.querySelectorAll('.calcium-pictures rect title')].map(x => x.textContent))"
    )


def choose(driver, label, choice):
    """Picks a choice of the radio buttons with that label."""
    path = f"//fieldset[.//*[@data-testid='block-info'][normalize-space()='{label}']]"
    driver.find_element(By.XPATH, f"{path}//label[normalize-space()='{choice}']").click()


def message(driver):
    """The error that is shown to the user, or ''."""
    return " ".join(toast.text for toast in driver.find_elements(By.CSS_SELECTOR, "[data-testid='toast-body']"))


def complaints(driver):
    """The errors in the browser's console, since the demo was opened or the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def requests(driver):
    """Addresses of all that was asked for over the network since the demo was opened or the last call."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [address for address in sent if address.startswith(("http", "ws"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained classifier")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="a text to classify")
    given.add_argument("--image", help="file of an image to classify")
    parser.add_argument("--title", default="Astroformer", help="heading of the page")
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    parser.add_argument("--screenshot", type=Path, required=True, help="where the picture of the page goes")
    args = parser.parse_args()
    with (
        serving("scripts/demo.py", "--model", args.model, "--title", args.title) as start,
        browser() as driver,
    ):
        open_demo(driver, f"{start()}/?__theme={'dark' if args.dark else 'light'}")
        classify(driver, args.text, args.image)
        wait_for(driver, "the answer", answer)
        time.sleep(1)  # until bars have grown and what loads has faded
        height = driver.execute_script("return document.querySelector('main, .gradio-container').scrollHeight")
        driver.set_window_size(1180, height + 160)
        time.sleep(0.5)
        driver.save_screenshot(str(args.screenshot))
    print(f"{args.screenshot}: {args.screenshot.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
