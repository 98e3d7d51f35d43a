"""A Celery worker that takes its tasks from a folder: a broker that needs no server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from celery import Celery
from helpers import wait_until

from neighbours.processes import Running, running

#: Seconds after which a result does not count.
PATIENCE = 60.0


class Worker:
    """A worker that runs, and the client that asks it."""

    def __init__(self, alias: str, process: Running, client: Celery, folder: Path) -> None:
        self.alias = alias
        self.process = process
        self.client = client
        self.folder = folder
        #: The connections that there were before the first task.
        self.before_tasks = set(process.connections())

    def run(self, task: str, times: int = 1, *arguments: Any) -> list[Any]:
        """Run a task many times at once; return the results, of which none is an error."""
        sent = [
            self.client.send_task(f"neighbours.site.tasks.{task}", arguments)
            for _ in range(times)
        ]
        self.deliver()
        return [each.get(timeout=PATIENCE, interval=0.02) for each in sent]

    def deliver(self) -> None:
        """Take what was sent, by us or the worker, to where the worker looks for it.

        It may be half written, and a worker does not survive half a message.
        """
        for message in (self.folder / "sent").iterdir():
            with suppress(ValueError):
                json.loads(message.read_bytes())
                message.rename(self.folder / "messages" / message.name)


@contextmanager
def working(options: list[str], settings: Mapping[str, object]) -> Iterator[Worker]:
    with tempfile.TemporaryDirectory(prefix="broker") as directory:
        folder = Path(directory)
        for name in ("sent", "messages", "control", "results"):
            (folder / name).mkdir()
        client = Celery("client", fixups=[], set_as_current=False)
        client.conf.update(
            broker_url="filesystem://",
            broker_transport_options={
                "data_folder_in": str(folder / "messages"),
                "data_folder_out": str(folder / "sent"),
                "control_folder": str(folder / "control"),
            },
            result_backend=f"file://{folder}/results",
        )
        arguments = ["celery", "--app", "neighbours.site.celery", "worker"]
        arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        arguments += ["--loglevel", "INFO", *options]
        with running(arguments, {"BROKER": folder, **settings}) as process:
            wait_until(
                process.is_ready(lambda: " ready." in process.log), "the worker is ready"
            )
            try:
                yield Worker(str(settings["ALIAS"]), process, client, folder)
            finally:
                client.close()
