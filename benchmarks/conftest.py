"""pytest-benchmark as the runner: what its JSON says of the machine and of the commit."""

from __future__ import annotations

from .environment import of_cpu


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(of_cpu())


def pytest_benchmark_update_commit_info(config, commit_info):
    for key in ("author_time", "project", "branch"):
        commit_info.pop(key, None)
