"""A pytest plugin that writes one line of JSON when a test ends, so that a killed run keeps its findings.

A worker whose GPU no longer answers after a test ends itself. xdist then starts a new worker, and the following tests
count.

GPU_OUTCOMES=FILE pytest -p gpu_stages.outcomes ...
"""

from __future__ import annotations

import json
import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # a worker's reports reach the controller, which writes them; PYTEST_XDIST_WORKER is inherited, and tells nothing
    config.pluginmanager.register(Worker() if hasattr(config, "workerinput") else Controller())


class Controller:
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        says = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or "")
        line = {"test": report.nodeid, "outcome": report.outcome, "says": says[-600:] if report.failed else says[:200]}
        with open(os.environ["GPU_OUTCOMES"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Worker:
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if not torch.cuda.is_initialized():
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(3)
