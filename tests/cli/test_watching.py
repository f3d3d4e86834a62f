"""`opservice watch --parent`: what there is, then each change, until it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.duration_pb2 import Duration

from cli.conftest import Run
from cli.processes import on_a_terminal, running
from opservice._proto.opservice.v1.operation_record_pb2 import Progress
from support.client import Client
from support.identities import TokenFile, calling_with, write_policy
from support.server import PATIENCE, ServerProcess, eventually, serving


def told(watch: subprocess.Popen[str]) -> list[str]:
    """The next line, without its time."""
    assert watch.stdout is not None
    return watch.stdout.readline().split()[1:]


def told_as_json(watch: subprocess.Popen[str]) -> tuple[str, int]:
    """The id and the revision of the next; 0 for what is removed."""
    assert watch.stdout is not None
    document: dict[str, Any] = json.loads(watch.stdout.readline())
    if "removedId" in document:
        assert document.keys() == {"removedId"}
        return document["removedId"], 0
    return document["operation"]["id"], int(document["revision"])


def test_it_tells_what_there_is_and_then_each_change_until_ctrl_c(
    server: ServerProcess, client: Client, run: Run, parent: str
) -> None:
    old = client.complete(client.started(parent=parent)).id
    id_ = client.started(parent=parent, description="Build")
    client.started(parent=f"{parent}/below")
    with running(server, "watch", "--parent", parent) as watch:
        assert told(watch) == [id_, "running", "Build"]
        assert told(watch) == [old, "done"]

        client.renew(id_, progress=Progress(done=1, total=2, unit="steps"))
        assert told(watch) == [id_, "running", "1/2", "steps", "Build"]
        new = client.started(parent=parent)
        assert told(watch) == [new, "running"]
        client.complete(id_)
        assert told(watch) == [id_, "done", "Build"]
        run("delete", id_)
        assert told(watch) == [id_, "removed"]

        watch.send_signal(signal.SIGINT)
        assert watch.communicate(timeout=PATIENCE) == ("", "")
    assert watch.returncode == 130


def test_what_does_not_match_the_filter_any_more_is_removed(
    server: ServerProcess, client: Client, parent: str
) -> None:
    client.complete(client.started(parent=parent))
    id_ = client.started(parent=parent)
    unfinished = ("--parent", parent, "--filter", "done = false", "--format", "json")
    with running(server, "watch", *unfinished) as watch:
        assert told_as_json(watch) == (id_, 1)
        client.complete(id_)
        assert told_as_json(watch) == (id_, 0)


def test_it_stops_after_its_time(run: Run, client: Client, parent: str) -> None:
    id_ = client.started(parent=parent)

    result = run("watch", "--parent", parent, "--timeout", "0s")

    assert result.stdout.split()[1:] == [id_, "running"]
    assert result.stderr == "opservice: stopped after --timeout\n"
    assert result.exit_code == 5


def test_a_parent_without_operations_is_followed_too(run: Run, parent: str) -> None:
    result = run("watch", "--parent", parent, "--timeout", "300ms")

    assert (result.stdout, result.stderr) == ("", "opservice: stopped after --timeout\n")


@pytest.mark.slow
def test_it_tells_all_of_a_large_parent(run: Run, crowd: tuple[str, list[str]]) -> None:
    parent, ids = crowd

    result = run("watch", "--parent", parent, "--timeout", "0s", "--format", "yaml")

    documents = list(yaml.safe_load_all(result.stdout))
    assert [document["operation"]["id"] for document in documents] == ids


def test_all_parents_are_those_with_and_without_one(run: Run, client: Client, parent: str) -> None:
    one = client.started(method=parent)
    two = client.started(method=parent, parent=parent)
    ours = ("--filter", f'method = "{parent}"', "--timeout", "0s", "--format", "json")

    everything = run("watch", "--all-parents", *ours).stdout
    without = run("watch", "--parent", "", *ours).stdout

    assert [json.loads(line)["operation"]["id"] for line in everything.splitlines()] == [two, one]
    assert [json.loads(line)["operation"]["id"] for line in without.splitlines()] == [one]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give IDs, or --parent or --all-parents"),
        (("a", "--parent", "b"), "give either IDs, or --parent or --all-parents"),
        (("a", "--all-parents"), "give either IDs, or --parent or --all-parents"),
        (("--parent", "a", "--all-parents"), "give either --parent or --all-parents"),
        (("--filter", "done = true"), "--filter needs --parent or --all-parents"),
        (("a", "--filter", "done = true"), "--filter needs --parent or --all-parents"),
        ([f"id{number}" for number in range(1001)], "at most 1000 IDs can be watched"),
    ],
)
def test_wrong_usage_says_what_to_give(run: Run, arguments: tuple[str, ...], says: str) -> None:
    result = run("watch", *arguments)

    assert says in result.stderr
    assert (result.stdout, result.exit_code) == ("", 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--parent", "no parent"), "parent: must be segments joined by '/'"),
        (("--all-parents", "--filter", "done = = true"), "filter: at character 8: "),
    ],
)
def test_what_the_server_does_not_understand_is_refused(
    run: Run, arguments: tuple[str, ...], says: str
) -> None:
    result = run("watch", *arguments)

    assert f": INVALID_ARGUMENT: {says}" in result.stderr
    assert (result.stdout, result.exit_code) == ("", 8)


@pytest.mark.parametrize("limit", [("--reconnect", "0s"), ("--timeout", "0s")], ids=" ".join)
def test_a_server_that_was_never_there_is_unreachable(run: Run, limit: tuple[str, str]) -> None:
    result = run("watch", "--all-parents", "--server", "127.0.0.1:1", *limit)

    assert result.stderr.startswith("opservice: 127.0.0.1:1: UNAVAILABLE: ")
    assert result.exit_code == 7


@pytest.mark.slow
def test_on_a_terminal_it_prints_lines_too(
    server: ServerProcess, client: Client, parent: str
) -> None:
    id_ = client.complete(client.started(parent=parent)).id

    code, shown = on_a_terminal(server, "watch", "--parent", parent, press=(id_, "\x03"))

    assert code == 130
    assert f"{id_}  \x1b[32mdone\x1b[0m\r\n" in shown


@pytest.mark.slow
def test_a_restart_neither_repeats_nor_loses_anything(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db") as server:
        one, two = (server.client.started(parent="a") for _ in range(2))
        with running(server, "watch", "--parent", "a", "--format", "json") as watch:
            assert {told_as_json(watch), told_as_json(watch)} == {(one, 1), (two, 1)}
            server.terminate()
            server.start()
            new = server.client.started(parent="a")
            assert told_as_json(watch) == (new, 1)
            server.client.complete(one)
            assert told_as_json(watch) == (one, 2)


@pytest.mark.slow
def test_what_went_while_a_stream_could_not_be_continued_is_removed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"resume_window": "0s"}
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", **settings) as server:
        soon = Duration(seconds=2)
        kept = server.client.started(parent="a")
        gone = server.client.complete(server.client.started(parent="a", retention=soon)).id
        with running(server, "watch", "--parent", "a", "--format", "json") as watch:
            assert {told_as_json(watch), told_as_json(watch)} == {(kept, 1), (gone, 2)}
            server.terminate()
            server.start()
            eventually(lambda: server.log(error="WatchOutdated"))
            assert told_as_json(watch) == (gone, 0)
            server.client.complete(kept)
            assert told_as_json(watch) == (kept, 2)


def test_it_goes_on_with_what_may_be_seen_when_that_changes(tmp_path: Path) -> None:
    tokens, policy = TokenFile(tmp_path), tmp_path / "policy.yaml"
    root, ann = tokens.add("root", "admin:*"), tmp_path / "ann"
    ann.write_text(tokens.add("ann"))
    write_policy(policy, {"ann": ["viewer:a", "viewer:b"]})
    settings: dict[str, Any] = {"tokens": tokens.file, "policy": policy}
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", **settings) as server:
        client = calling_with(server.channel(), root)
        a, b, c = (client.started(parent=parent) for parent in "abc")
        as_ann = ("--token-file", str(ann), "--format", "json")
        with running(server, "watch", "--all-parents", *as_ann) as watch:
            assert {told_as_json(watch), told_as_json(watch)} == {(a, 1), (b, 1)}
            write_policy(policy, {"ann": ["viewer:b", "viewer:c"]})
            server.send_signal(signal.SIGHUP)
            assert [told_as_json(watch), told_as_json(watch)] == [(c, 1), (a, 0)]
            client.complete(b)
            assert told_as_json(watch) == (b, 2)
