"""The files for a server: each is parsed by who will read it, or run, and says what the program takes."""

from __future__ import annotations

import configparser
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
import yaml

from tests.postgres import missing_part
from tests.test_serve import KNOWN, TOKEN, Server, serving
from tests.waiting import eventually
from tocsin import cli
from tocsin.settings import reference

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PORT = 4318

SETTINGS = {name for name, _, _ in reference()}


def taken(command: Sequence[str]) -> Sequence[str]:
    """A command line of tocsin, read as tocsin reads it; for `run` what it would run."""
    assert Path(command[0]).name == "tocsin"
    if command[1] == "run":
        assert command[2] == "--"
        return command[3:]
    arguments = cli.parser().parse_args(command[1:])
    assert getattr(arguments, "port", PORT) == PORT
    return command[1:]


def assert_settings(names: Sequence[str]) -> None:
    assert {name for name in names if name.startswith("TOCSIN_")} <= SETTINGS


# The image.


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, each with the rest of its line."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def instructions(name: str) -> list[str]:
    return [rest for word, rest in dockerfile() if word == name]


def copied() -> list[Path]:
    """What goes into the image, by the names that the checkout has for it."""
    return [Path(name) for rest in instructions("COPY") for name in rest.split()[:-1]]


def test_the_image_copies_what_is_there_and_nothing_is_ignored() -> None:
    """What Docker does not see cannot be copied: the list of what it sees is closed."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    seen = {line[1:] for line in lines if line.startswith("!")}

    for path in copied():
        assert (ROOT / path).exists(), path
        assert path.parts[0] in seen, path
    assert seen == {path.parts[0] for path in copied()}


def test_the_image_runs_the_server_as_a_user_without_rights() -> None:
    (command,) = instructions("CMD")
    (user,) = instructions("USER")

    assert taken(json.loads(command)) == ["serve", "--host", "0.0.0.0"]
    assert user == "tocsin"
    assert "--uid 10001" in next(rest for rest in instructions("RUN") if "useradd" in rest)
    assert instructions("EXPOSE") == [str(PORT)]
    (check,) = instructions("HEALTHCHECK")
    assert f"http://127.0.0.1:{PORT}/livez" in check


def test_no_instruction_holds_a_secret() -> None:
    for rest in instructions("ENV") + instructions("ARG"):
        assert not re.search(r"TOKEN|PASSWORD|SECRET|KEY", rest), rest


@pytest.mark.gate
def test_what_the_image_installs_serves(tmp_path: Path) -> None:
    """Its own install line in a fresh venv, from the files that it copies; then its command and health check."""
    for path in copied():
        target = tmp_path / "checkout" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / path, target)
    venv.create(tmp_path / "venv", with_pip=True)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "PYTHON"))},
        "PATH": f"{tmp_path}/venv/bin{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    install = next(rest for rest in instructions("RUN") if "pip install" in rest)
    subprocess.run(install, shell=True, cwd=tmp_path / "checkout", env=environ, check=True, timeout=600)
    command = [*json.loads(instructions("CMD")[0]), "--port", str(port := free_port())]
    (check,) = re.findall(r"CMD (\[.*\])", instructions("HEALTHCHECK")[0])

    refused = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "TOCSIN_TOKEN" in refused.stderr
    with subprocess.Popen(command, cwd=tmp_path, env=environ | {"TOCSIN_TOKEN": TOKEN}) as server:
        probe = json.loads(check.replace(str(PORT), str(port)))
        eventually(lambda: subprocess.run(probe, env=environ, capture_output=True, check=False).returncode == 0, 60)
        server.terminate()
        assert server.wait(20) == 0


# Compose.


class StrictLoader(yaml.SafeLoader):
    """YAML in which no key comes twice: the last would win without a word."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    assert len(keys) == len(set(keys)), keys
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def compose() -> dict[str, Any]:
    return dict(yaml.load((ROOT / "compose.yaml").read_text(), StrictLoader))


SERVICES = ("database", "server", "shop")
_KEYS = {
    *("build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "ports", "read_only"),
    *("restart", "security_opt", "stop_grace_period", "tmpfs", "volumes", "working_dir"),
}


def test_compose_has_the_three_services_and_no_key_that_compose_has_not() -> None:
    services = compose()["services"]

    assert tuple(services) == SERVICES
    for service in services.values():
        assert service.keys() <= _KEYS
    for file in ("Dockerfile",):
        assert (ROOT / services["server"]["build"] / file).exists()


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_waits_for_what_it_needs(name: str) -> None:
    """For its health, which therefore is asked for; and what it keeps is in a volume that is declared."""
    file = compose()
    service = file["services"][name]

    for needed, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert file["services"][needed]["healthcheck"]["test"][0] == "CMD"
    for volume in service["volumes"]:
        assert volume.split(":")[0] in file["volumes"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES[1:])
def test_compose_sets_what_tocsin_knows_and_runs_what_it_takes(name: str) -> None:
    service = compose()["services"][name]

    assert_settings(list(service["environment"]))
    assert taken(service["command"])
    assert service["command"][-1] in "".join(service["ports"])


def test_the_shop_of_compose_is_in_the_image() -> None:
    shop = compose()["services"]["shop"]

    (target,) = [rest.split()[1] for rest in instructions("COPY") if rest.split()[0].endswith("shop.py")]
    assert str(Path(target).parent) == shop["working_dir"]
    assert f"{Path(target).stem}:app" in shop["command"]
    assert urlsplit(shop["environment"]["TOCSIN_ENDPOINT"]).netloc == f"server:{PORT}"


def test_compose_holds_no_secret_and_asks_for_each() -> None:
    """A secret that is not set stops the start; none has a default."""
    for service in compose()["services"].values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|TOKEN\Z|DATABASE_URL", name):
                assert re.search(r"\$\{\w+:\?[^}]+\}|\$\{TOCSIN_TELEGRAM_TOKEN:-\}", value), name


# PM2.


_PM2_KEYS = {
    *("name", "script", "args", "interpreter", "exec_mode", "instances", "treekill", "kill_timeout", "cwd", "env"),
    "exp_backoff_restart_delay",
}


def test_pm2_reads_its_file() -> None:
    """With node: keys that it knows, commands that tocsin takes, settings that there are."""
    if shutil.which("node") is None:
        missing_part("node")
    script = "console.log(JSON.stringify(require(process.argv[1])))"
    done = subprocess.run(
        ["node", "-e", script, str(DEPLOY / "ecosystem.config.cjs")], capture_output=True, text=True, check=True
    )

    apps = {app["name"]: app for app in json.loads(done.stdout)["apps"]}

    assert apps.keys() == {"tocsin", "shop"}
    for app in apps.values():
        assert app.keys() <= _PM2_KEYS
        assert (app["interpreter"], app["exec_mode"], app["treekill"]) == ("none", "fork", False)
        assert taken([app["script"], *app["args"]])
        assert_settings(list(app.get("env", {})))
        assert app["kill_timeout"] >= 10_000
    assert taken([apps["shop"]["script"], *apps["shop"]["args"]]) == ["node", "app.js"]


# systemd.


UNITS = ("tocsin.service", "shop.service")


def unit(name: str) -> dict[str, list[tuple[str, str]]]:
    """Its sections; a key may come more than once."""
    found: dict[str, list[tuple[str, str]]] = {}
    section = ""
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, sign, value = line.partition("=")
            assert sign
            found.setdefault(section, []).append((key, value))
    return found


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_what_tocsin_takes_and_can_be_stopped(name: str) -> None:
    service = unit(name)["Service"]
    values = dict(service)
    settings = [value.partition("=")[0] for key, value in service if key == "Environment"]

    assert taken(shlex.split(values["ExecStart"]))
    assert_settings(settings)
    assert values["Restart"] == "always"
    assert int(values["TimeoutStopSec"]) >= 15
    assert values["StateDirectoryMode"] == "0700"
    assert values["EnvironmentFile"].startswith("-/etc/tocsin/")
    assert values["User"] not in ("", "root")


@pytest.mark.parametrize("name", UNITS)
def test_systemd_reads_a_unit(name: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` where there is one; it also looks for the program, which is put in its place here."""
    text = re.sub(r"^(ExecStart=)\S+", rf"\1{shutil.which('true')}", (DEPLOY / name).read_text(), flags=re.MULTILINE)
    (tmp_path / name).write_text(text)
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(tmp_path / name)
    assert parser.sections() == ["Unit", "Service", "Install"]
    if (analyze := shutil.which("systemd-analyze")) is None:
        return

    done = subprocess.run([analyze, "verify", str(tmp_path / name)], capture_output=True, text=True, check=False)

    assert [line for line in done.stderr.splitlines() if name in line] == []


# nginx.


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def nginx(folder: Path, server: Server) -> Iterator[httpx.Client]:
    """A real one with the file of the project before a server; whoever asks it knows its certificate."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        missing_part("nginx")
    assert program is not None
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("tocsin.example.com")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "fullchain.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "privkey.pem"))
    site = (DEPLOY / "nginx.conf").read_text()
    assert site.count(f"proxy_pass http://127.0.0.1:{PORT};") == 3
    site = site.replace(f"http://127.0.0.1:{PORT}", server.address).replace("/etc/ssl/tocsin", str(folder))
    site = site.replace("listen 443", f"listen 127.0.0.1:{port}").replace("    listen [::]:443 ssl;\n", "")
    paths = "".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {site} }}"
    )
    start = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    read = subprocess.run([*start, "-t"], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert "warn" not in read.stderr
    context = ssl.create_default_context()
    authority.configure_trust(context)
    running = subprocess.Popen([*start, "-g", "daemon off; master_process off;"])
    try:
        with httpx.Client(verify=context, trust_env=False, base_url=f"https://127.0.0.1:{port}") as client:
            client.headers["host"] = "tocsin.example.com"
            client.event_hooks["request"].append(_ask_by_name)
            eventually(lambda: _answers(port), 20)
            yield client
    finally:
        running.terminate()
        running.wait(20)


def _ask_by_name(request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = "tocsin.example.com"


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def test_nginx_stands_before_the_server(tmp_path: Path) -> None:
    """It answers by TLS; who comes by way of it is not taken for this machine, and knows the token or is refused."""
    settings = {"TOCSIN_TOKEN": TOKEN, "TOCSIN_TRUSTED_PROXIES": "127.0.0.1"}
    logs = {"resourceLogs": []}  # type: dict[str, Any]
    with serving(tmp_path, **settings) as server:
        server.until_ready()
        with nginx(tmp_path, server) as client:
            assert client.get("/livez").status_code == 200
            assert client.get("/livez").headers["strict-transport-security"]

            assert httpx.post(f"{server.address}/v1/logs", json=logs, trust_env=False).status_code == 200
            assert client.post("/v1/logs", json=logs).status_code == 401
            assert client.post("/v1/logs", json=logs, headers=KNOWN).status_code == 200
            assert client.post("/api/debug/errors", json={"message": "a"}).status_code == 401
            assert client.get("/api/debug/health").status_code == 401
            assert client.get("/api/debug/health", headers=KNOWN).status_code == 200


def test_nginx_lets_large_bodies_through_where_they_are_expected(tmp_path: Path) -> None:
    large = {"message": "a" * 2_000_000}
    with serving(tmp_path, TOCSIN_TOKEN=TOKEN) as server, nginx(tmp_path, server) as client:
        assert client.post("/v1/logs", json=large).status_code == http.client.UNAUTHORIZED
        assert client.post("/api/debug/errors", json=large).status_code == http.client.REQUEST_ENTITY_TOO_LARGE


# What people read.


PAGES = (ROOT / "docs" / "deploy.md", ROOT / "docs" / "deploy.ru.md")


def test_both_languages_say_the_same() -> None:
    """As many headings at the same depth, the same links, and the same blocks of code but for their comments."""
    english, russian = (page.read_text() for page in PAGES)

    def shape(text: str) -> list[str]:
        plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        return [line.split(" ")[0] for line in plain.splitlines() if line.startswith("#")]

    def blocks(text: str) -> list[str]:
        found = re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
        return [f"{kind}\n" + re.sub(r"\s*#.*", "", code) for kind, code in found]

    def code(text: str) -> list[str]:
        return sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))))

    def links(text: str) -> list[str]:
        return re.findall(r"\]\(([^)#]+)[^)]*\)", text.partition("\n\n")[2])

    assert shape(english) == shape(russian)
    assert blocks(english) == blocks(russian)
    assert code(english) == code(russian)
    assert links(english) == links(russian)


def test_every_command_of_a_page_is_one_that_tocsin_takes() -> None:
    """With whatever stands before it: a folder, another user, a container."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[0].read_text(), flags=re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    found = [match[1] for line in lines if (match := re.search(r"(?:^ *|bin/|exec server )(tocsin [a-z-][^']*)", line))]

    commands = [shlex.split(command) for command in found]
    assert {command[1] for command in commands} >= {"run", "setup", "check", "migrate", "--version"}
    for command in commands:
        if command[1:] == ["--version"]:
            continue
        assert taken(command)


def test_the_russian_page_is_russian() -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", PAGES[1].read_text(), flags=re.DOTALL)

    assert len(re.findall("[а-яё]", text, re.IGNORECASE)) > 5 * len(re.findall("[a-z]", text, re.IGNORECASE))


def test_every_file_of_the_folder_is_told_of() -> None:
    for page in PAGES:
        for path in [*DEPLOY.iterdir(), ROOT / "compose.yaml", ROOT / "Dockerfile"]:
            assert path.name in page.read_text(), f"{page.name}: {path.name}"
