"""How much memory a process may take: by its control groups, its parent, its machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import environment_of
from tocsin.exporter import limits
from tocsin.exporter.limits import machine_bytes, of_groups

MB = 2**20


def groups(folder: Path, lines: str, files: dict[str, str]) -> list[tuple[int, int]]:
    """Limit and use of each group that is found, where a machine has these files."""
    root = folder / "cgroup"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (folder / "own").write_text(lines)
    return [(one.bytes, one.used(10 * MB, 0.0)) for one in of_groups(root, folder / "own")]


def test_the_group_of_a_container_is_the_root_of_what_is_seen(tmp_path: Path) -> None:
    files = {"memory.max": f"{512 * MB}\n", "memory.current": f"{100 * MB}\n"}

    assert groups(tmp_path, "0::/\n", files) == [(512 * MB, 100 * MB)]
    assert groups(tmp_path, "0::/docker/0123456789\n", files) == [(512 * MB, 100 * MB)]
    assert groups(tmp_path, "0::/../other\n", files) == [(512 * MB, 100 * MB)]


def test_a_group_may_be_limited_by_one_that_it_is_in(tmp_path: Path) -> None:
    files = {
        "system.slice/memory.max": f"{300 * MB}\n",
        "system.slice/memory.current": f"{120 * MB}\n",
        "system.slice/shop.service/memory.max": "max\n",
        "system.slice/shop.service/memory.current": f"{20 * MB}\n",
    }

    assert groups(tmp_path, "0::/system.slice/shop.service\n", files) == [(300 * MB, 120 * MB)]


def test_the_pages_of_files_are_no_memory_that_a_limit_ends_a_process_for(tmp_path: Path) -> None:
    """The kernel takes them back first; a service that reads much has its group full of them."""
    files = {
        "memory.max": f"{100 * MB}\n",
        "memory.current": f"{98 * MB}\n",
        "memory.stat": f"anon {30 * MB}\ninactive_file {40 * MB}\nactive_file {25 * MB}\n",
    }

    assert groups(tmp_path, "0::/\n", files) == [(100 * MB, 33 * MB)]


def test_version_1_says_the_same_in_other_words(tmp_path: Path) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": f"{100 * MB}\n",
        "memory/job/memory.usage_in_bytes": f"{98 * MB}\n",
        "memory/job/memory.stat": f"total_inactive_file {40 * MB}\ntotal_active_file {25 * MB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }

    assert groups(tmp_path, "4:cpu:/job\n3:memory:/job\n0::/\n", files) == [(100 * MB, 33 * MB)]


@pytest.mark.parametrize("lines", ["", "nonsense\n", "0::/\n", "3:memory:/x\n", "0::/a\\012b\n"])
def test_without_a_limit_the_machine_is_the_limit(lines: str, tmp_path: Path) -> None:
    assert groups(tmp_path, lines, {"memory.max": "max\n"}) == []
    assert limits.lowest() <= machine_bytes()
    assert machine_bytes() in [one.bytes for one in limits.found()]


PROGRAM = """
import json, os, subprocess, sys, time
from tocsin.exporter import limits
from tocsin.exporter.life import resident_bytes

child = subprocess.Popen([sys.executable, "-c", "taken = bytearray(40 * 2**20); print(1, flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
(tree,) = [one for one in limits.found(os.environ["TOLD"]) if one.by == "--max-memory"]
own = resident_bytes()
print(json.dumps([tree.bytes, own, tree.used(own, 0.0), tree.others()]))
child.communicate(b"\\n")
"""


def test_what_a_program_has_started_counts_for_the_limit_of_its_parent(tmp_path: Path) -> None:
    """As `tocsin run` adds it up."""
    environ = environment_of(tmp_path, "sqlite:///x", TOLD=f"{1000 * MB} {os.getpid()}")

    said = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)

    limit, own, used, others = json.loads(said.stdout)
    assert limit == 1000 * MB
    (other,) = others
    assert other > 40 * MB
    assert used == own + other


@pytest.mark.parametrize("told", ["", "nonsense", "1000000", "1000000 1 2", "1000000 99999999"])
def test_who_is_not_under_such_a_parent_has_no_limit_of_it(told: str) -> None:
    """The environment goes on to whatever a program starts, and lets live on."""
    assert "--max-memory" not in [one.by for one in limits.found(told)]
