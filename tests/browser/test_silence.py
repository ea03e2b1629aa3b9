"""A hub that hangs: no page says that it is live."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Windows
from tests.harness import HubProcess, make_database, run_sql

pytestmark = pytest.mark.needs("chromium")


@pytest.mark.parametrize("path", ["/", "/console"])
def test_a_hub_that_hangs_is_not_called_live(tmp_path: Path, windows: Windows, path: str) -> None:
    windows.network_errors_expected = True
    database = make_database(tmp_path / "app.db", "CREATE TABLE notes(id INTEGER PRIMARY KEY, text)")
    with HubProcess(database, "--heartbeat", "0.4") as hub:
        page = windows.open(f"{hub.url}{path}")
        status = page.get_by_role("status")
        expect(status).to_have_text("Live")
        os.kill(hub.pid, signal.SIGSTOP)
        try:
            expect(status).to_have_text("Connection lost. Reconnecting…")
        finally:
            os.kill(hub.pid, signal.SIGCONT)
        expect(status).to_have_text("Live")
        run_sql(database, "INSERT INTO notes(text) VALUES ('after the silence')")
        expect(page.get_by_text("after the silence").first).to_be_visible()
