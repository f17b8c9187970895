"""The page at `/docs`, driven in a real browser: what a person sees, sends and gets."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import joblib
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mlimg.runtime.digest import Digest
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile, ModelManifest, model_path
from mlimg.template import shared_files
from tests.integration.conftest import unavailable
from tests.support.servers import ROOT, ask, running, server_folder

MARKUP = "<img src=x onerror=window.broken=1>"
LARGE = 2**60 + 1  # which a browser's own numbers cannot hold
TOLD = f"""
import time, numpy as np
from pathlib import Path
def load(model_dir, options):
    while options.get("gate") and not Path(options["gate"]).exists(): time.sleep(0.05)
    return Path(model_dir).name
def signature(model):
    return ([{{"name": "x", "datatype": "FP64", "shape": [-1]}}],
            [{{"name": "y", "datatype": "INT64", "shape": [-1], "parameters": {{"classes": [{MARKUP!r}, model]}}}}])
def predict(model, inputs): return {{"y": np.full(len(inputs["x"]), {LARGE} if model == "wine" else 1)}}
"""
# The least contrast of all text that is seen, by the formula of WCAG 2, and where it is.
CONTRAST = """
const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const parse = text => text.match(/[0-9.]+/g).map(Number);
const under = e => { const c = e && parse(getComputedStyle(e).backgroundColor);
  return !e ? [255, 255, 255] : c[3] === 0 ? under(e.parentElement) : c; };
let least = [99, ''];
for (const e of document.querySelectorAll('body *')) {
  const seen = e.getClientRects().length && !['OPTION', 'SCRIPT'].includes(e.tagName);
  if (!seen || !(e.value || [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(under(e))].sort((p, q) => q - p);
  const ratio = (a + .05) / (b + .05);
  if (ratio < least[0]) least = [ratio, e.outerHTML.slice(0, 100)];
}
return least;
"""


@dataclass
class Page:
    """The page of a server in the browser."""

    driver: webdriver.Chrome
    port: int

    def open(self, path: str = "/docs") -> None:
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(f"http://127.0.0.1:{self.port}{path}")

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def wait_for(self, name: str, text: str) -> None:
        WebDriverWait(self.driver, 30).until(lambda _: text in self[name].text, f"never `{text}`: {self[name].text}")

    def write(self, request: object) -> None:
        self["body"].clear()
        self["body"].send_keys(json.dumps(request))

    def complaints(self) -> list[str]:
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """Whom the page asked, and was about to ask."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return {urlsplit(request["request"]["url"]).netloc for request in sent} - {""}  # data: has none


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        unavailable("Chromium and its driver: tools/test-packages.sh installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))
    yield browser
    browser.quit()


def publish(folder: Path, name: str, framework: str = "custom", file_format: str = "any") -> ModelManifest:
    files = tuple(
        ModelFile(model_path(path.name), path.stat().st_size, Digest.of_file(path)) for path in folder.iterdir()
    )
    manifest = ModelManifest(name, "3", framework, file_format, files)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return manifest


def two_models(tmp_path: Path, **options: Any) -> dict[str, str]:
    """The environment of a server of `digits` and `wine`."""
    for name in ("digits", "wine"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"1")
        publish(folder, name)
    server = server_folder(tmp_path / "server", TOLD, options)
    return {"MLIMG_MODEL_DIR": str(tmp_path / "models"), "MLIMG_SERVER_DIR": str(server)}


def test_a_person_asks_a_digits_classifier(driver: webdriver.Chrome, tmp_path: Path) -> None:
    data, target = load_digits(return_X_y=True)
    estimator = LogisticRegression(max_iter=50, tol=1).fit(data, target)
    folder = tmp_path / "model"
    folder.mkdir()
    joblib.dump(estimator, folder / "model.joblib")
    manifest = publish(folder, "digits", "sklearn", "joblib")
    facts = {"template": "sklearn", "frameworks": ["sklearn"], "formats": ["joblib"]}
    server = server_folder(tmp_path / "server", None, {"method": "predict"}, **facts)
    shutil.copy(ROOT / "templates" / "sklearn" / "handler.py", server)
    with running({"MLIMG_MODEL_DIR": str(folder), "MLIMG_SERVER_DIR": str(server)}) as serving:
        serving.wait_until(200)
        page = Page(driver, serving.port)
        page.open()
        page.wait_for("ready", "Ready")
        assert page["name"].text == "digits"
        assert page["server"].text == "mlimg-sklearn 1"
        assert {"3", manifest.digest.text, str(folder)} <= set(page["facts"].text.split("\n"))
        assert "FP64" in page["inputs"].text
        assert page["inputs"].text.rstrip().endswith("64")

        page["send"].click()  # the example works as it is
        page.wait_for("status", "200 OK")
        assert " ms " in page["status"].text

        wanted = [int(label) for label in estimator.predict(data[[7, 42]])]
        request = json.loads(page["body"].get_property("value"))
        request["inputs"][0] |= {"shape": [2, 64], "data": data[[7, 42]].ravel().tolist()}
        page.write({**request, "id": "mine"})
        page["body"].send_keys(Keys.CONTROL, Keys.ENTER)
        page.wait_for("answer", '"mine"')
        assert json.loads(page["answer"].text)["outputs"][0]["data"] == wanted
        driver.find_element(By.TAG_NAME, "summary").click()
        assert '"mine"' in page["curl"].text
        assert f"'http://127.0.0.1:{serving.port}/v2/models/digits/infer'" in page["curl"].text

        Select(page["route"]).select_by_value("/v1/models/digits:predict")
        page.write({"instances": data[[7, 42]].tolist()})
        page["send"].click()
        page.wait_for("answer", "predictions")
        assert json.loads(page["answer"].text) == {"predictions": wanted}
        assert page.complaints() == []
        assert page.hosts() == {f"127.0.0.1:{serving.port}"}

        page["body"].clear()
        page["send"].click()
        page.wait_for("status", "400 Bad Request")
        assert "error" in json.loads(page["answer"].text)


def test_light_and_dark_wide_and_narrow_it_can_be_read(driver: webdriver.Chrome, tmp_path: Path) -> None:
    with running(two_models(tmp_path)) as serving:
        serving.wait_until(200)
        page = Page(driver, serving.port)
        page.open("/")
        page.wait_for("ready", "Ready")
        page["send"].click()
        page.wait_for("status", "200 OK")
        driver.find_element(By.TAG_NAME, "summary").click()
        grounds = set()
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            ratio, where = driver.execute_script(CONTRAST)
            assert ratio >= 4.5, (scheme, ratio, where)
            grounds.add(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        driver.execute_script("document.getElementById('about').style.color = '#555'")
        assert driver.execute_script(CONTRAST)[0] < 4.5, "the measure finds what cannot be read"

        narrow = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        for field in driver.find_elements(By.CSS_SELECTOR, "select, textarea"):
            assert driver.execute_script("return arguments[0].labels.length", field) == 1
        driver.execute_script("arguments[0].focus()", page["body"])
        page["body"].send_keys(Keys.TAB)
        assert driver.switch_to.active_element == page["send"]
        assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_page_opened_too_early_turns_ready_and_lets_choose_a_model(driver: webdriver.Chrome, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running(two_models(tmp_path, gate=str(gate))) as serving:
        serving.wait_until(503)
        page = Page(driver, serving.port)
        page.open()
        page.wait_for("ready", "Not ready")
        assert not page["try"].is_displayed()
        gate.touch()
        page.wait_for("ready", "Ready")
        Select(page["model"]).select_by_visible_text("wine")
        assert page["name"].text == "wine"
        page["send"].click()
        page.wait_for("answer", "outputs")
        assert str(LARGE) in page["answer"].text, "no digit is lost"

        assert MARKUP in page["outputs"].text
        assert driver.find_elements(By.TAG_NAME, "img") == []
        assert page.complaints() == []
        driver.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", MARKUP)
        WebDriverWait(driver, 10).until(lambda _: any("Content Security Policy" in text for text in page.complaints()))
        assert driver.execute_script("return window.broken") is None


def test_the_page_is_small_ships_in_images_and_comes_with_a_strict_policy(tmp_path: Path) -> None:
    pages = [file for file in shared_files() if file.path.name == "page.html"]
    assert [len(file.data) < 20_000 for file in pages] == [True]
    with running(two_models(tmp_path)) as serving:
        serving.wait_until(200)
        reply = ask(serving.port, "/docs")
    assert reply.body == pages[0].data
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; ")
