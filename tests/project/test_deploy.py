"""deploy/, compose.yaml and docs/operations.md name what exists, and the programs they are for take them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click import Command, Group

from opservice.cli import cli
from opservice.domain.operation import SECOND
from opservice.main.server import CLOSE_SECONDS
from opservice.runtime.settings import Settings
from support.server import serving
from support.tools import require_tool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "opservice.service"
PAGE = ROOT / "docs" / "operations.md"
TEXTS = [PAGE, ROOT / "compose.yaml", *(path for path in DEPLOY.rglob("*") if path.is_file())]
OTHERS_FLAGS = {
    # of pg_dump, pg_restore, pg_isready, docker, systemctl and useradd
    *("--format", "--file", "--exit-on-error", "--no-owner", "--dbname"),
    *("--username", "--host", "--detach", "--wait", "--now"),
    *("--system", "--user-group", "--no-create-home", "--shell"),
}


def options(command: Command) -> set[str]:
    found = {name for parameter in command.params for name in parameter.opts}
    if isinstance(command, Group):
        for name in command.list_commands(None):  # type: ignore[arg-type]
            found |= options(command.get_command(None, name))  # type: ignore[arg-type]
    return found


def variables() -> set[str]:
    serve = cli.get_command(None, "serve")  # type: ignore[arg-type]
    assert serve is not None
    return {f"OPSERVICE_{p.opts[0][2:].replace('-', '_').upper()}" for p in serve.params}


def test_every_flag_and_variable_that_operators_are_told_of_exists() -> None:
    known, settings = options(cli) | OTHERS_FLAGS, variables() | {"OPSERVICE_IMAGE"}
    for path in TEXTS:
        text = path.read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)) - known == set(), path
        named = set(re.findall(r"OPSERVICE_[A-Z_]*[A-Z]", text))
        assert named - settings == set(), path


def test_every_file_that_the_page_names_is_there() -> None:
    named = re.findall(r"`((?:deploy|scripts)/[\w./-]+|compose\.yaml)`", PAGE.read_text())
    assert len(named) > 4
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "line",
    [
        ["check", "rules", "opservice.rules.yml"],
        ["test", "rules", "opservice.rules.test.yml"],
        ["check", "config", "prometheus.yml"],
    ],
    ids=lambda line: " ".join(line[:2]),
)
def test_prometheus_takes_its_files_and_the_alerts_fire_as_they_should(line: list[str]) -> None:
    promtool = require_tool("promtool", "apt-get install prometheus")
    checked = subprocess.run(
        [promtool, *line], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_server_has_the_metrics_that_the_alerts_ask_for(
    tmp_path: Path, sqlite_url: str
) -> None:
    rules = (DEPLOY / "prometheus" / "opservice.rules.yml").read_text()
    asked = set(re.findall(r"\b([a-z_]+)\{job=", rules)) - {"up"}
    assert asked
    with serving(tmp_path, sqlite_url, http_listen="127.0.0.1:0") as server:
        server.client.started()
        metrics = httpx.get(f"{server.http_url}/metrics", trust_env=False)
    served = {
        f"{name}_total" if kind == "counter" and not name.endswith("_total") else name
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", metrics.text, re.MULTILINE)
    }
    assert asked - served == set()


def test_what_an_alert_waits_for_is_counted_before_the_first(
    tmp_path: Path, sqlite_url: str
) -> None:
    """Of a counter that comes with its first event, `increase` is 0, and the alert would miss it."""
    rules = (DEPLOY / "prometheus" / "opservice.rules.yml").read_text()
    asked = re.findall(r'increase\((\w+)\{job="opservice", (\w+="\w+")\}', rules)
    assert len(asked) == rules.count("increase(")
    with serving(tmp_path, sqlite_url, http_listen="127.0.0.1:0") as server:
        lines = httpx.get(f"{server.http_url}/metrics", trust_env=False).text.splitlines()
    for name, label in asked:
        assert [line for line in lines if line.startswith(f"{name}{{") and label in line], name


def test_every_alert_has_a_test_and_is_in_the_page() -> None:
    rules = (DEPLOY / "prometheus" / "opservice.rules.yml").read_text()
    tests = (DEPLOY / "prometheus" / "opservice.rules.test.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert alerts
    assert [name for name in alerts if f"alertname: {name}" not in tests] == []
    assert [name for name in alerts if f"`{name}`" not in PAGE.read_text()] == []


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    analyze = require_tool("systemd-analyze", "apt-get install systemd")
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"/opt/opservice/bin/opservice", "/bin/true", UNIT.read_text()))
    verified = subprocess.run(
        [analyze, "verify", copy], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_leaves_time_to_drain() -> None:
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", UNIT.read_text(), re.MULTILINE)
    grace = re.search(r"stop_grace_period: (\d+)s", (ROOT / "compose.yaml").read_text())

    assert stop is not None
    assert grace is not None
    drain = Settings().processes.drain // SECOND
    assert min(int(stop[1]), int(grace[1])) > drain + CLOSE_SECONDS


def test_compose_names_its_own_services_volumes_and_files() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    assert {"opservice", "migrate", "postgres", "prometheus"} == set(services)
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if "/" in source else source in compose["volumes"]
    assert services["opservice"]["command"] == ["serve"]
    assert all("127.0.0.1:" in port for each in services.values() for port in each.get("ports", ()))
