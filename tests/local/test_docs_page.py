"""The docs page, used in a real browser."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.cognito import UserPool
from tools.client import Transport, seed

Rows = Callable[..., list[tuple[Any, ...]]]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1400",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium with a temporary profile, with its network and console logs enabled."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        reason = "NO BROWSER, the docs page is not tested: apt-get install chromium chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.mark.slow
def test_docs_page_can_place_an_order(
    browser: Any, server: tuple[str, int], user_pool: UserPool, tenant: str, rows: Rows
) -> None:
    host, port = server

    browser.get(f"http://{host}:{port}/docs")
    assert browser.title == "Order API"
    assert "make token TENANT=acme USER=alice" in browser.find_element(By.TAG_NAME, "body").text
    authorize(browser, user_pool.token(tenant))
    click(browser, "#operations-orders-placeOrder .opblock-summary-control")
    prefilled = wait_for_visible(browser, "#operations-orders-placeOrder textarea").get_attribute("value")
    click(browser, "#operations-orders-placeOrder .execute")

    answer = wait_for_visible(browser, "#operations-orders-placeOrder .live-responses-table")
    status = answer.find_element(By.CSS_SELECTOR, "tbody .response-col_status").text
    placed = json.loads(answer.find_element(By.CSS_SELECTOR, ".highlight-code code").text)
    assert json.loads(prefilled) == seed()
    assert status.splitlines()[0] == "201"
    assert placed["message"] == "Order created successfully"
    order_id = placed["order"]["order_id"]
    assert rows("select order_id::text, total_amount::text from orders where tenant_id = %s", tenant) == [
        (order_id, "99.99")
    ]
    assert requested_hosts(browser) == {f"{host}:{port}"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_docs_serves_only_the_pages_files(http: Transport) -> None:
    page = http("GET", "/docs", {}, b"")

    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert http("HEAD", "/docs", {}, b"").body == b""
    for path in (
        "/docs/",
        "/docs/LICENSE",
        "/docs/nothing.js",
        "/docs/../docs.py",
        "/docs/%2e%2e/docs.py",
        f"/docs/{'a' * 300}.js",
    ):
        assert http("GET", path, {}, b"").status == 404, path
    assert http("POST", "/docs", {}, b"").status == 405


def authorize(browser: Any, token: str) -> None:
    click(browser, ".scheme-container .authorize")
    wait_for_visible(browser, ".auth-container input").send_keys(token)
    click(browser, ".auth-btn-wrapper .authorize")
    click(browser, ".auth-btn-wrapper .btn-done")


def click(browser: Any, selector: str) -> None:
    WebDriverWait(browser, 20).until(
        expected.element_to_be_clickable((By.CSS_SELECTOR, selector)), selector
    ).click()


def wait_for_visible(browser: Any, selector: str) -> Any:
    return WebDriverWait(browser, 20).until(
        expected.visibility_of_element_located((By.CSS_SELECTOR, selector)), selector
    )


def requested_hosts(browser: Any) -> set[str]:
    """The hosts of all requests that the page sent, also of failed ones."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = [
        urlsplit(message["request"]["url"]) for message in sent if message["documentURL"].startswith("http")
    ]
    return {url.netloc for url in urls if url.scheme != "data"}
