"""`opservice start`, `complete` and `fail`: what they send, and what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code

from cli.conftest import Run
from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from support.client import OTHER_TOKEN, TOKEN, Client, packed

PAYLOAD = '{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "thing"}'


def test_start_quietly_prints_nothing_but_the_id(run: Run, client: Client) -> None:
    result = run("start", "--quiet", "--description", "Nightly backup")

    assert client.get(result.stdout.removesuffix("\n")).description == "Nightly backup"
    assert result.exit_code == 0


def test_start_prints_the_id_and_the_state(run: Run, client: Client) -> None:
    id_, state = run("start").stdout.split()

    assert state == "running"
    assert not client.get(id_).done


def test_start_as_json_says_whether_the_operation_is_owned(run: Run) -> None:
    line = ["start", "--idempotency-key", "one", "--created-by", "json", "--format", "json"]
    first = json.loads(run(*line, OPSERVICE_LEASE_TOKEN=TOKEN).stdout)
    second = json.loads(run(*line, OPSERVICE_LEASE_TOKEN=OTHER_TOKEN).stdout)

    assert first["operation"]["id"] == second["operation"]["id"]
    assert (first["owned"], second["owned"]) == (True, False)


def test_start_sends_every_field(run: Run, client: Client, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    id_ = run(
        "start", "-q", "--description", "d", "--parent", "a/b", "--method", "m",
        "--created-by", "c", "--cancel-policy", "cooperative", "--lease", "1h",
        "--lease-token-file", str(token_file), "--operation-timeout", "2h", "--retention", "3h",
        "--id-prefix", "abc", "--metadata", PAYLOAD,
    ).stdout.strip()  # fmt: skip

    record = client.records.Get(pb.GetOperationRecordRequest(operation_id=id_))
    operation = record.operation

    assert id_.startswith("abc")
    assert (operation.description, operation.created_by) == ("d", "c")
    assert (record.parent, record.method) == ("a/b", "m")
    assert record.cancel_policy == CancelPolicy.COOPERATIVE
    lease = record.lease_expires_at.ToMicroseconds() - operation.created_at.ToMicroseconds()
    assert lease == 3600 * 1_000_000
    assert operation.metadata == packed(StringValue(value="thing"))
    ended = client.complete(id_, lease_token=TOKEN)
    record = client.records.Get(pb.GetOperationRecordRequest(operation_id=id_))
    kept = record.expires_at.ToMicroseconds() - ended.modified_at.ToMicroseconds()
    assert kept == 3 * 3600 * 1_000_000


def test_an_operation_that_is_started_with_a_timeout_ends_by_it(run: Run) -> None:
    id_ = run("start", "-q", "--operation-timeout", "200ms").stdout.strip()

    result = run("wait", id_)

    assert result.exit_code == 3
    assert "DEADLINE_EXCEEDED" in result.stdout


def test_complete_sends_the_response_and_the_metadata(
    run: Run, client: Client, tmp_path: Path
) -> None:
    id_ = client.started()
    (tmp_path / "metadata.json").write_text(PAYLOAD)

    result = run("complete", id_, "--response", PAYLOAD, "--metadata", f"@{tmp_path}/metadata.json")

    assert result.stdout == f"{id_}  done\n"
    operation = client.get(id_)
    assert operation.response == operation.metadata == packed(StringValue(value="thing"))


def test_complete_without_a_response_gives_an_empty_one(run: Run, client: Client) -> None:
    id_ = client.started()

    run("complete", id_)

    assert client.get(id_).response == packed(Empty())


def test_fail_sends_the_code_and_the_message(run: Run, client: Client) -> None:
    id_ = client.started()

    result = run("fail", id_, "--code", "not_found", "--message", "There is no image 7")

    assert result.stdout == f"{id_}  failed\n"
    error = client.get(id_).error
    assert (error.code, error.message) == (Code.NOT_FOUND, "There is no image 7")


@pytest.mark.parametrize("end", [["complete"], ["fail", "--code", "INTERNAL"]], ids=" ".join)
def test_whoever_has_not_the_lease_token_is_refused(
    run: Run, client: Client, end: list[str]
) -> None:
    id_ = client.started(lease_token=TOKEN)

    assert run(*end, id_, OPSERVICE_LEASE_TOKEN=OTHER_TOKEN).exit_code == 8
    assert run(*end, id_, OPSERVICE_LEASE_TOKEN=TOKEN).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "--metadata", "{"],
        ["start", "--metadata", "3"],
        ["start", "--metadata", '{"value": "no type"}'],
        ["start", "--metadata", '{"@type": "type.googleapis.com/no.Such", "a": 1}'],
        ["start", "--metadata", '{"@type": "type.googleapis.com/google.protobuf.Duration"}'],
        ["start", "--metadata", '{"@type": "t/opservice.v1.StartRequest", "cancelPolicy": 1e999}'],
        ["start", "--metadata", r'{"@type": "t/google.rpc.Status", "\ud800": 1}'],
        ["start", "--metadata", "@/no/such/file"],
        ["start", "--cancel-policy", "never"],
        ["start", "--lease", "soon"],
        ["fail", "any", "--code", "OK"],
        ["fail", "any"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_sent_is_wrong_usage(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_a_start_takes_labels_and_get_shows_them(run: Run) -> None:
    id_ = run("start", "--quiet", "--label", "team=core", "--label", "note=a=b").output.strip()
    shown = run("get", id_).output
    assert "note=a=b, team=core" in shown
    as_json = json.loads(run("get", id_, "--format", "json").output)
    assert as_json["labels"] == {"team": "core", "note": "a=b"}
    listed = run("list", "--filter", "labels.team = core labels.note:'=b'", "--quiet").output
    assert id_ in listed.split()


@pytest.mark.parametrize("labels", [["nothing"], ["a=1", "a=2"], ["Team=x"]], ids=str)
def test_a_label_that_is_none_is_refused(run: Run, labels: list[str]) -> None:
    result = run("start", *(part for each in labels for part in ("--label", each)))
    assert result.exit_code != 0
    assert "label" in result.stderr
