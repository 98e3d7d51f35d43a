"""Prometheus itself, from Debian's package: it scrapes a page, and evaluates rules."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from helpers import wait_until
from second_server import free_port

CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: site
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """What a running Prometheus answers."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except URLError:
            return False

    def values(self, expression: str) -> list[float]:
        """Return the value of each series now; a fault in the expression raises."""
        found = self._ask("query", query=expression)["result"]
        return [float(each["value"][1]) for each in found]

    def label_values(self, metric: str, label: str) -> list[str]:
        found: list[str] = self._ask(f"label/{label}/values", **{"match[]": metric})
        return found

    def alerts(self) -> dict[str, str]:
        """Return the state of each alert whose condition is true: pending, or firing."""
        found = self._ask("alerts")["alerts"]
        return {each["labels"]["alertname"]: each["state"] for each in found}

    def _ask(self, what: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urlencode(parameters)}"
        with urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]


@contextmanager
def prometheus(folder: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """Run Prometheus: once a second it scrapes `target` and evaluates the file of rules."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(rules=rules, target=target), encoding="utf-8")
    port = free_port()
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        try:
            server = Prometheus(port)
            wait_until(server.is_ready, "Prometheus is ready", seconds=30)
            yield server
        finally:
            process.terminate()
            process.wait(30)
