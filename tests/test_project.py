"""The project tells the truth: its tables, its examples, and nothing that ties it to one machine."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.waiting import eventually
from tocsin import __version__, cli
from tocsin.settings import PREFIX, reference

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_BEGIN = "<!-- settings: written by `python -m tests.test_project` -->\n"
_END = "<!-- /settings -->\n"


def tracked() -> list[Path]:
    """The files of the project; all of them where there is no git, as in an unpacked archive."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def settings_table() -> str:
    """The table of settings as the README shall have it."""
    lines = ["| setting | default | what |", "| --- | --- | --- |"]
    for name, default, about in reference():
        lines.append(f"| `{name}` | {f'`{default}`' if default else ''} | {about}{_note(name)} |")
    return "\n".join(lines) + "\n"


def _note(name: str) -> str:
    return "" if is_used(name) else " (*not yet*)"


def is_used(name: str) -> bool:
    """Whether any code asks for a setting."""
    field = name.removeprefix(PREFIX).lower()
    asked = r"\.rings_in\(" if field == "alert_environments" else rf"settings\.{field}\b"
    return any(re.search(asked, source) for source in _sources())


def _sources() -> list[str]:
    return [path.read_text() for path in (ROOT / "tocsin").rglob("*.py") if path.name != "settings.py"]


def test_the_readme_lists_every_setting_as_it_is() -> None:
    """`python -m tests.test_project` writes the table anew."""
    readme = (ROOT / "README.md").read_text()

    assert readme.split(_BEGIN)[1].split(_END)[0] == settings_table()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_setting_that_does_not_exist(page: Path) -> None:
    known = {name for name, _, _ in reference()} | {"TOCSIN_REQUIRE_ALL"}

    assert set(re.findall(r"TOCSIN_[A-Z0-9_]+\b", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_one_that_tocsin_takes(page: Path) -> None:
    """Examples are read by the parser itself; what follows `run` belongs to another program."""
    for line in commands_on(page.read_text()):
        words = shlex.split(line, comments=True)
        if words[1:2] == ["run"]:
            continue
        try:
            cli.parser().parse_args(words[1:])
        except SystemExit as end:
            assert end.code in (0, None), f"{page.name}: {line}"


def commands_on(text: str) -> list[str]:
    """What a page tells people to type: lines of shell blocks, and code within sentences."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    # Settings before it, and a pipe behind it, are the shell's; "…" and capitals stand for something.
    found = []
    for line in lines:
        command = re.sub(r"^(?:[A-Z_]+=\S*\s+)+", "", line).split(" | ")[0]
        if re.match(r"tocsin [a-z-]+", command) and not re.search(r"…|\b[A-Z]{1,10}\b(?!=)", command):
            found.append(command)
    return found


def test_the_pages_have_commands_to_read() -> None:
    """Guards the test above against finding nothing."""
    found = [command for page in PAGES for command in commands_on(page.read_text())]

    assert {command.split()[1] for command in found} >= {*cli.command_names()} - {"alerts"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:tests|tocsin|docs)/[\w./]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


BLOCKS = [
    pytest.param(block, id=f"{page.name}-{at}")
    for page in PAGES
    for at, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_in_python_run(block: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(block)

    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr


def test_the_tutorial_leads_to_its_first_error(tmp_path: Path) -> None:
    """Its application, run as it says: the customer's 500, the line on stderr, the group by `tocsin show 1`."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    (app,) = re.findall(r"```python\n(# app\.py\n.*?)```", tutorial, re.DOTALL)
    (tmp_path / "app.py").write_text(app)
    assert "tocsin run -- uvicorn app:app" in tutorial
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tocsin = [sys.executable, "-m", "tocsin"]
    uvicorn = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    with (tmp_path / "stderr").open("w+") as stderr:
        running = subprocess.Popen(
            [*tocsin, "run", "--", *uvicorn],
            cwd=tmp_path,
            env=environment(tmp_path) | {"TOCSIN_SERVICE": "shop"},
            stdout=stderr,
            stderr=stderr,
        )
        try:
            assert eventually(lambda: status_of(f"http://127.0.0.1:{port}/orders/7"), 30) == 500
            eventually(lambda: "HIGH api #1 KeyError: 'phone'" in (tmp_path / "stderr").read_text(), 30)
        finally:
            running.terminate()
            running.wait(30)

    shown = subprocess.run(
        [*tocsin, "show", "1"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=True
    ).stdout

    for part in ("KeyError: 'phone'", "app in get_order", "http.route: /orders/{order_id}", 'order["phone"]'):
        assert part in shown


def status_of(url: str) -> int | None:
    """The status that an address answers with; None while nobody does."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
    except OSError:
        return None


def environment(folder: Path) -> dict[str, str]:
    """A clean home, so that nothing of whoever runs the tests is read or written."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_", "XDG_"))}
    return kept | {"HOME": str(folder), "PYTHONPATH": str(ROOT)}


def test_every_target_of_make_is_told() -> None:
    """In its own help, and to who works here."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"\.PHONY: (.+)", makefile)

    assert targets is not None
    for target in targets[1].split():
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE), target
        if target != "help":
            assert f"`make {target}`" in (ROOT / "CONTRIBUTING.md").read_text(), target


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_constraints_are_exact_and_without_addresses() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9][\w.]*( ; .+)?", line), line
        assert "://" not in line


_HOSTS = re.compile(r"pypi\.|python(?:hosted)|--index-url|extra-index|devpi|artifactory|registry\.npm", re.IGNORECASE)
_PLACES = re.compile(r"/(?:root|Users|work/(?:main|shared)|opt/pypi|opt/wheels)/")


def test_no_file_names_a_registry_or_a_folder_of_one_machine() -> None:
    for path in tracked():
        if path == Path(__file__):
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        found = [*_HOSTS.findall(text), *_PLACES.findall(text)]
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_nothing_is_tracked_that_a_run_leaves_behind() -> None:
    ends = (".db", ".db-wal", ".db-shm", ".pyc", ".env", ".log", ".egg-info")

    assert [path for path in tracked() if path.name.endswith(ends) or path.name == "uv.lock"] == []


if __name__ == "__main__":
    readme_path = ROOT / "README.md"
    head, rest = readme_path.read_text().split(_BEGIN)
    readme_path.write_text(head + _BEGIN + settings_table() + _END + rest.split(_END)[1])
