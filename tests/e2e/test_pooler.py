"""Behind PgBouncer in transaction mode, which gives each transaction another connection to PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from opservice._proto.opservice.v1 import operation_record_pb2 as record_pb
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    ListOperationRecordsRequest,
    WaitOperationRecordRequest,
)
from opservice.domain.errors import StartupError
from opservice.domain.operation import DAY, Record, Start, new_id
from opservice.store.drivers.postgresql.fast_reads import PostgresqlReads
from opservice.store.drivers.postgresql.settings import TIME_LIMITS
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from opservice.store.statements import ORIGINS
from store.conftest import connections_of
from support.client import TOKEN, Client
from support.pgbouncer import pgbouncer
from support.postgres import PostgresServer
from support.replicas import REPOSITORY, apply_one
from support.server import PATIENCE, run_opservice, serving

COOPERATIVE = record_pb.CancelPolicy.COOPERATIVE


@pytest.fixture(scope="module")
def pooler(postgres: PostgresServer) -> Iterator[int]:
    with pgbouncer(postgres) as port:
        yield port


def limited(postgres: PostgresServer) -> str:
    """The name of a new database whose role has the time limits that the server asks for."""
    name = postgres.create_database().rpartition("/")[2]
    for setting, seconds in TIME_LIMITS.items():
        postgres.execute(f"ALTER ROLE tests IN DATABASE {name} SET {setting} = '{seconds}s'")
    return name


def life(number: int, writer: Client, reader: Client) -> None:
    """What may happen to an operation, each step seen through the other replica at once."""
    parent = f"rounds/{number}"
    started = writer.started(lease=Duration(seconds=60), lease_token=TOKEN, parent=parent)
    assert not reader.get(started).done
    assert not reader.renew(started, lease_token=TOKEN).cancel_requested
    waiting = WaitOperationRecordRequest(operation_id=started, timeout=Duration(seconds=30))
    waited = reader.records.Wait.future(waiting)
    if number % 2:
        assert writer.cancel(started).error.code == 1
    else:
        assert not writer.complete(started, lease_token=TOKEN).HasField("error")
    assert waited.result().operation.done
    for client in (reader, writer):
        assert client.get(started).done
    slow = writer.started(cancel_policy=COOPERATIVE, lease=Duration(seconds=60), lease_token=TOKEN)
    assert not reader.cancel(slow).done
    assert writer.renew(slow, lease_token=TOKEN).cancel_requested
    listed = reader.records.List(ListOperationRecordsRequest(parent=parent))
    assert [each.operation.id for each in listed.operation_records] == [started]


@pytest.mark.slow
def test_two_replicas_do_everything_through_pgbouncer(
    tmp_path: Path, postgres: PostgresServer, pooler: int
) -> None:
    url = f"postgresql://tests@127.0.0.1:{pooler}/{limited(postgres)}?options="
    migrated = run_opservice("migrate", environment={"OPSERVICE_DATABASE": url})
    assert migrated.returncode == 0, migrated.stderr
    with (
        serving(tmp_path, url, no_notify=True) as one,
        serving(tmp_path, url, no_notify=True) as other,
        ThreadPoolExecutor(8) as threads,
    ):
        clients = [one.client, other.client]
        rounds = [threads.submit(life, number, *random.sample(clients, 2)) for number in range(100)]
        for each in rounds:
            each.result()
        for server in (one, other):
            assert not server.log(level="warning")
            assert not server.log(level="error")
    prepared = postgres.execute(
        "SELECT count(DISTINCT pid) FROM pg_stat_activity WHERE application_name = 'opservice'"
    )
    assert prepared[0][0] >= 4  # type: ignore[operator]


def test_a_server_that_was_not_told_of_the_pooler_says_what_hints_need(
    tmp_path: Path, postgres: PostgresServer, pooler: int
) -> None:
    url = f"postgresql://tests@127.0.0.1:{pooler}/{limited(postgres)}?options="
    with serving(tmp_path, url) as server:
        (warning,) = server.log(level="warning")
        assert (
            "a pooler is between this server and PostgreSQL: give --no-notify" in warning["event"]
        )


def test_a_pooler_that_refuses_options_is_told_how_to_be_served(
    postgres: PostgresServer, pooler: int
) -> None:
    url = f"postgresql://tests@127.0.0.1:{pooler}/postgres"
    with closing(open_database(url)) as database, pytest.raises(StartupError) as refused:
        database.check_connections()
    assert "unsupported startup parameter: options" in str(refused.value)
    assert "give ?options= in the database URL" in str(refused.value)


def test_a_pooler_that_drops_the_time_limits_is_refused_until_the_role_has_them(
    postgres: PostgresServer,
) -> None:
    name = postgres.create_database().rpartition("/")[2]
    with pgbouncer(postgres, ignore_startup_parameters="options") as port:
        url = f"postgresql://tests@127.0.0.1:{port}/{name}"
        with closing(open_database(url)) as database, pytest.raises(StartupError) as refused:
            database.check_connections()
        statements = [each for each in str(refused.value).split(": ")[-1].split(";") if each]
        assert len(statements) == len(TIME_LIMITS)
        for statement in statements:
            postgres.execute(statement)
        postgres.kill_connections(name)
        with closing(open_database(url)) as database:
            database.check_connections()


def test_a_pooler_in_statement_mode_is_refused(postgres: PostgresServer) -> None:
    with pgbouncer(postgres, "statement") as port:
        url = f"postgresql://tests@127.0.0.1:{port}/{limited(postgres)}?options="
        with closing(open_database(url)) as database, pytest.raises(StartupError) as refused:
            database.check_connections()
    assert "not allowed in statement pooling mode" in str(refused.value)


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_a_pooler_is_recognized_in_each_of_its_modes(
    postgres: PostgresServer, pool_mode: str
) -> None:
    name = limited(postgres)
    with pgbouncer(postgres, pool_mode) as port:
        for each, expected in ((port, True), (postgres.port, False)):
            url = f"postgresql://tests@127.0.0.1:{each}/{name}?options="
            with closing(open_database(url)) as database:
                assert database.through_pooler() is expected


async def test_reads_on_the_event_loop_go_through_the_pooler_without_names(
    postgres: PostgresServer, pooler: int
) -> None:
    url = f"postgresql://tests@127.0.0.1:{pooler}/{limited(postgres)}?options="
    with closing(open_database(url)) as database:
        migrate(database)
        ids = [new_id() for _ in range(5)]
        for id_ in ids:
            apply_one(database, Start(id_, DAY))
        reads = [
            PostgresqlReads(connections_of(database), REPOSITORY.records, ORIGINS) for _ in range(2)
        ]
        async with asyncio.timeout(PATIENCE):
            for each in reads:
                while await each.find(ids) is None:  # noqa: ASYNC110 - nothing signals it
                    await asyncio.sleep(0.01)
        for _ in range(20):
            for each in reads:
                found = await each.find(ids)
                assert found is not None
                assert [isinstance(one, Record) and one.id for one in found] == ids
        for each in reads:
            each.close()
        assert connections_of(database).may_prepare()


@pytest.mark.parametrize("setting", TIME_LIMITS)
def test_a_url_that_takes_a_time_limit_away_is_refused(
    postgres: PostgresServer, setting: str
) -> None:
    url = f"{postgres.url('postgres')}?options=-c%20{setting}=0"
    with closing(open_database(url)) as database, pytest.raises(StartupError) as refused:
        database.check_connections()
    assert f"cannot be used: {setting} would be 0" in str(refused.value)
