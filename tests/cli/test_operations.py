"""`opservice get`, `list`, `cancel` and `delete`, against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from grpc import RpcError

from cli.conftest import Run
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from support.client import Client, packed
from support.server import serving


def test_get_shows_everything_about_one_operation(run: Run, client: Client, parent: str) -> None:
    id_ = client.started(
        description="Build it",
        parent=parent,
        method="a.v1.B.Build",
        created_by="me",
        metadata=packed(StringValue(value="thing")),
    )
    client.renew(id_, progress=Progress(done=3, total=7, unit="layers", message="pulling"))

    shown = run("get", id_).stdout

    assert shown.startswith(f"ID           {id_}\nStatus       running\n")
    for text in ("Build it", parent, "a.v1.B.Build", "me", '"value": "thing"'):
        assert text in shown
    assert "Progress     3/7 layers pulling\n" in shown


def test_get_shows_what_is_kept_beside_an_operation_also_when_it_is_done(
    run: Run, client: Client
) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    request = StartRequest(labels={"team": "core", "a": "b=c"}, timeout=Duration(seconds=3600))
    id_ = client.producer.Start(request, metadata=(("traceparent", trace),)).operation.id
    client.cancel(id_)
    shown = run("get", id_).stdout
    assert "Labels       a=b=c, team=core\n" in shown
    assert "\nTimeout at   20" in shown
    assert f"Trace        {trace}\n" in shown


def test_get_of_a_failed_operation_says_why_and_exits_with_0(run: Run, client: Client) -> None:
    id_ = client.fail(client.started(), Status(code=Code.NOT_FOUND, message="no image 7")).id

    result = run("get", id_)

    assert "Status       failed\nError        NOT_FOUND: no image 7\n" in result.stdout
    assert result.exit_code == 0


def test_get_of_several_is_a_table_in_their_order(run: Run, client: Client) -> None:
    ids = [client.started(description=f"number {number}") for number in range(3)]
    client.cancel(ids[1])

    lines = run("get", *ids, ids[0]).stdout.splitlines()

    assert lines[0].split() == ["ID", "STATUS", "AGE", "METHOD", "DESCRIPTION", "PROGRESS"]
    assert [line.split()[:2] for line in lines[1:]] == [
        [ids[0], "running"],
        [ids[1], "cancelled"],
        [ids[2], "running"],
    ]


def test_one_that_is_not_there_does_not_keep_the_others_from_being_shown(
    run: Run, client: Client
) -> None:
    id_ = client.started()

    result = run("get", "nowhere", id_)

    assert id_ in result.stdout
    assert "NOT_FOUND: Operation nowhere not found" in result.stderr
    assert result.exit_code == 6


def test_get_shows_more_than_the_server_returns_in_one_answer(
    run: Run, client: Client, crowd: tuple[str, list[str]]
) -> None:
    largest = StringValue(value="x" * (1 << 20))
    largest.value = largest.value[: 2 * len(largest.value) - packed(largest).ByteSize()]
    large = [client.complete(client.started(), response=packed(largest)).id for _ in range(4)]
    ids = [*crowd[1][:500], *large, "nowhere", *crowd[1][500:]]

    result = run("get", *ids, "--format", "json")

    shown = [each["operation"]["id"] for each in json.loads(result.stdout)]
    assert shown == [id_ for id_ in ids if id_ != "nowhere"]
    assert result.stderr.endswith(": NOT_FOUND: Operation nowhere not found\n")
    assert result.exit_code == 6


def test_what_is_no_id_does_not_keep_the_others_from_being_shown(run: Run, client: Client) -> None:
    ids = [client.started() for _ in range(3)]

    result = run("get", ids[0], "", *ids[1:], "--format", "json")

    assert [each["operation"]["id"] for each in json.loads(result.stdout)] == ids
    assert "INVALID_ARGUMENT: operation_id: must not be empty" in result.stderr
    assert result.exit_code == 8


def test_get_of_several_says_once_that_the_server_is_away(run: Run) -> None:
    result = run("get", "a", "b", "--server", "127.0.0.1:1")

    assert result.stderr.count("UNAVAILABLE") == 1
    assert (result.stdout, result.exit_code) == ("", 7)


def test_piped_tables_are_not_cut_off(run: Run, client: Client) -> None:
    ids = [client.started(description="long " * 50, method="m" * 250) for _ in range(2)]

    lines = run("get", *ids).stdout.splitlines()

    assert len(lines) == 3
    assert all("m" * 250 in line and line.endswith("long") for line in lines[1:])


@pytest.mark.parametrize(("format_", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_get_in_a_format_for_programs_is_an_object_or_an_array(
    run: Run, client: Client, format_: str, load: Callable[[str], Any]
) -> None:
    ids = [client.started(description="Grüße") for _ in range(2)]

    one = load(run("get", ids[0], "--format", format_).stdout)
    both = load(run("get", *ids, "--format", format_).stdout)

    assert one["operation"]["id"] == ids[0]
    assert one["operation"]["description"] == "Grüße"
    assert [each["operation"]["id"] for each in both] == ids


def test_list_shows_one_parent_newest_first(run: Run, client: Client, parent: str) -> None:
    ids = [client.started(parent=parent) for _ in range(3)]
    client.started()

    lines = run("list", "--parent", parent).stdout.splitlines()

    assert [line.split()[0] for line in lines] == ["ID", *reversed(ids)]


def test_list_goes_through_all_pages(run: Run, crowd: tuple[str, list[str]]) -> None:
    parent, ids = crowd

    listed = run("list", "--parent", parent, "-q").stdout.split()
    as_json = json.loads(run("list", "--parent", parent, "--format", "json").stdout)

    assert listed == ids
    assert [each["operation"]["id"] for each in as_json] == ids


def test_list_stops_at_its_limit(run: Run, client: Client, parent: str) -> None:
    ids = [client.started(parent=parent) for _ in range(4)]

    result = run("list", "--parent", parent, "--limit", "3", "--quiet")

    assert result.stdout.split() == ids[:0:-1]


def test_list_of_all_parents_has_every_operation(run: Run, client: Client, parent: str) -> None:
    ids = [client.started(), client.started(parent=parent)]

    listed = run("list", "--all-parents", "--limit", "2", "-q").stdout.split()

    assert listed == ids[::-1]


def test_list_filters(run: Run, client: Client, parent: str) -> None:
    ids = [client.started(parent=parent) for _ in range(3)]
    client.complete(ids[1])

    listed = run("list", "--parent", parent, "--filter", "done = true", "-q").stdout.split()

    assert listed == [ids[1]]


def test_a_filter_that_does_not_parse_is_refused(run: Run) -> None:
    result = run("list", "--filter", "done = = true")

    assert result.exit_code == 8
    line, filter_, place = result.stderr.splitlines()
    assert ": INVALID_ARGUMENT: filter: at character 8: " in line
    assert line.endswith(")")
    assert filter_.index("= true") == place.index("^")


@pytest.mark.parametrize("format_", ["json", "yaml"])
def test_an_empty_list_is_an_empty_array(run: Run, parent: str, format_: str) -> None:
    assert run("list", "--parent", parent, "--format", format_).stdout == "[]\n"


@pytest.mark.parametrize("arguments", [("--parent", "nowhere"), ("--filter", "id = nothing")])
def test_a_list_that_finds_nothing_names_the_option_for_all_parents(
    run: Run, arguments: tuple[str, ...]
) -> None:
    result = run("list", *arguments)

    assert result.stdout == ""
    assert "give --all-parents" in result.stderr
    assert result.exit_code == 0


@pytest.mark.parametrize("arguments", [("-q",), ("--format", "json")])
def test_a_list_for_programs_that_finds_nothing_says_nothing(
    run: Run, arguments: tuple[str, ...]
) -> None:
    assert run("list", "--filter", "id = nothing", *arguments).stderr == ""


def test_a_list_of_all_parents_that_finds_nothing_says_so(run: Run) -> None:
    result = run("list", "--all-parents", "--filter", "id = nothing")

    assert result.stderr == "No operations were found.\n"


def test_parent_and_all_parents_exclude_each_other(run: Run) -> None:
    assert run("list", "--parent", "a", "--all-parents").exit_code == 2


def test_cancel_says_what_became_of_each(run: Run, client: Client) -> None:
    ids = [client.started(), client.started(cancel_policy=CancelPolicy.COOPERATIVE)]

    result = run("cancel", *ids)

    assert result.stdout == f"{ids[0]}  cancelled\n{ids[1]}  cancelling\n"
    assert client.get(ids[0]).error.code == Code.CANCELLED
    assert result.exit_code == 0


def test_what_is_being_cancelled_is_shown_so_though_its_error_is_hidden(
    run: Run, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/a.db"
    with serving(tmp_path, database, hide_error_until_done=True) as server:
        at = ("--server", server.address)
        id_ = server.client.started(cancel_policy=CancelPolicy.COOPERATIVE)

        assert run("cancel", id_, *at).stdout == f"{id_}  cancelling\n"
        assert "Status       cancelling\n" in run("get", id_, *at).stdout
        assert f"{id_}  cancelling" in run("list", "--all-parents", *at).stdout


def test_cancel_of_what_cannot_be_cancelled_is_refused(run: Run, client: Client) -> None:
    result = run("cancel", client.started(cancel_policy=CancelPolicy.UNSUPPORTED))

    assert result.exit_code == 8
    assert "FAILED_PRECONDITION: The operation cannot be cancelled" in result.stderr


def test_delete_deletes_what_is_done_and_refuses_what_is_running(run: Run, client: Client) -> None:
    done, running = client.complete(client.started()).id, client.started()

    result = run("delete", done, running)

    assert result.stdout == f"{done}  deleted\n"
    assert result.exit_code == 8
    assert not client.get(running).done
    with pytest.raises(RpcError, match="not found"):
        client.get(done)
