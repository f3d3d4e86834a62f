"""Keys for tokens: how they are kept while their source changes or is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler
from threading import Event

import pytest

from auth.key_files import RSA, A, B, File, answering, jwks_of
from opservice.auth import keys
from opservice.auth.keys import KeySource
from opservice.domain.errors import KeysUnavailable, StartupError
from opservice.domain.operation import SECOND
from support.identities import KeyServer, jwks, serving_keys
from support.logs import capture_logs
from support.server import PATIENCE

QUICK = SECOND // 100
RARELY = 3600 * SECOND


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MIN_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(keys, "_FIRST_BACKOFF_SECONDS", 0.01)


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not look():  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.005)


@asynccontextmanager
async def kept_fresh(
    source: str, interval: int, on_change: Callable[[], None] = lambda: None
) -> AsyncIterator[KeySource]:
    """A source that was read, and is read again until the block ends."""
    made = KeySource(source, interval, on_change)
    await made.start()
    task = asyncio.create_task(made.keep_fresh())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_key_is_found_by_its_id_and_the_only_one_also_without(file: File) -> None:
    file.write(jwks(A))
    source = KeySource(str(file), RARELY, lambda: None)
    await source.start()

    found = source.find("a")
    assert found is not None
    assert source.find("") == found
    assert source.find("b") is None


async def test_of_several_keys_none_is_found_without_an_id(file: File) -> None:
    file.write(jwks(A, B))
    source = KeySource(str(file), RARELY, lambda: None)
    await source.start()

    assert source.find("") is None


async def test_a_file_without_keys_is_a_refusal_to_start(file: File) -> None:
    file.write(jwks_of())

    with pytest.raises(StartupError, match=f"no keys from {file}"):
        await KeySource(str(file), RARELY, lambda: None).start()


async def test_a_url_that_is_away_at_the_start_may_answer_later(hasty: None) -> None:
    with serving_keys(A) as server:
        server.available = False
        async with kept_fresh(server.url, QUICK) as source:
            assert source.find("a") is None
            server.available = True

            await until(lambda: source.find("a"))


async def test_new_keys_take_the_place_of_the_old_ones_and_are_told_of(hasty: None) -> None:
    changes: list[None] = []
    with serving_keys(A) as server:
        async with kept_fresh(server.url, QUICK, lambda: changes.append(None)) as source:
            server.keys = [B]
            await until(lambda: source.find("b"))

            assert source.find("a") is None
            assert len(changes) == 1


async def test_another_key_under_the_same_id_is_a_change(hasty: None, file: File) -> None:
    changes: list[None] = []
    file.write(jwks(A))
    async with kept_fresh(str(file), QUICK, lambda: changes.append(None)) as source:
        before = source.find("a")
        file.write(jwks_of({**B.jwk, "kid": "a"}))

        await until(lambda: source.find("a") != before)
        assert len(changes) == 1


async def test_the_same_keys_are_no_change(hasty: None) -> None:
    changes: list[None] = []
    with serving_keys(A) as server:
        async with kept_fresh(server.url, QUICK, lambda: changes.append(None)):
            # What was read before the last time has been compared.
            await until(lambda: server.asked > 4)

    assert changes == []


async def test_keys_that_an_operator_had_read_again_and_that_did_not_change_are_told_of(
    hasty: None,
) -> None:
    with serving_keys(A) as server, capture_logs() as logged:
        async with kept_fresh(server.url, RARELY) as source:
            source.refresh()
            await until(lambda: server.asked == 2)
            source.refresh(tell=True)

            await until(lambda: logged)

    assert [line["event"] for line in logged] == ["the keys were reloaded, and nothing has changed"]


async def test_the_old_keys_stay_while_the_source_is_away(hasty: None) -> None:
    with serving_keys(A) as server:
        async with kept_fresh(server.url, QUICK) as source:
            server.available = False
            asked = server.asked
            await until(lambda: server.asked > asked + 3)

            assert source.find("a")


async def test_a_broken_file_leaves_the_old_keys_until_it_is_mended(
    hasty: None, file: File
) -> None:
    file.write(jwks(A))
    async with kept_fresh(str(file), QUICK) as source:
        file.write("{")
        with pytest.raises(KeysUnavailable):
            await source.find_anew("b")
        assert source.find("a")

        file.write(jwks(B))
        await until(lambda: source.find("b"))


async def test_a_source_that_is_away_is_let_alone_for_longer(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_FIRST_BACKOFF_SECONDS", 3600)
    with serving_keys(A) as away, serving_keys(A) as there:
        away.available = False
        async with kept_fresh(away.url, QUICK), kept_fresh(there.url, QUICK):
            await until(lambda: there.asked > 10)

            assert away.asked == 1


async def test_an_unknown_key_has_the_source_read_at_once(hasty: None) -> None:
    with serving_keys(A) as server:
        async with kept_fresh(server.url, RARELY) as source:
            server.keys = [A, B]

            assert await source.find_anew("b")


async def test_a_source_that_is_away_is_still_asked_for_an_unknown_key(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_FIRST_BACKOFF_SECONDS", 3600)
    with serving_keys(A) as server:
        server.available = False
        async with kept_fresh(server.url, RARELY) as source:
            server.available = True

            assert await source.find_anew("a")


async def test_a_key_that_the_source_does_not_have_is_not_found(hasty: None) -> None:
    with serving_keys(A) as server:
        async with kept_fresh(server.url, RARELY) as source:
            assert await source.find_anew("b") is None
            assert server.asked == 2


async def test_those_who_look_for_unknown_keys_at_a_time_share_a_reading(hasty: None) -> None:
    """Anybody can invent them."""
    with serving_keys(A) as server:
        async with kept_fresh(server.url, RARELY) as source:
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(source.find_anew(f"invented-{number}"))

            assert server.asked == 2


async def test_whether_an_unknown_key_is_good_cannot_be_said_while_the_source_is_away(
    hasty: None,
) -> None:
    with serving_keys(A) as server:
        async with kept_fresh(server.url, RARELY) as source:
            server.available = False

            with pytest.raises(KeysUnavailable):
                await source.find_anew("b")
            assert await source.find_anew("a")


class HeldUp:
    """A source of which each reading waits until it is let go on, with the keys of when it began."""

    def __init__(self, server: KeyServer) -> None:
        self._server = server
        self.begun = 0
        self.go_on = [Event(), Event()]

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        content = jwks(*self._server.keys).encode()
        number, self.begun = self.begun, self.begun + 1
        if number:  # not the first
            self.go_on[number - 1].wait(PATIENCE)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)


async def test_a_reading_that_began_before_does_not_count_for_an_unknown_key(
    hasty: None,
) -> None:
    """What it gives may be from before the token's key was made."""
    published = KeyServer(A)
    held_up = HeldUp(published)
    with answering(held_up) as url:
        async with kept_fresh(url, RARELY) as source:
            source.refresh()
            await until(lambda: held_up.begun == 2)
            published.keys = [A, B]
            looking = asyncio.create_task(source.find_anew("b"))
            await asyncio.sleep(0)  # it looks now

            held_up.go_on[0].set()
            await until(lambda: held_up.begun == 3)
            assert not looking.done()
            held_up.go_on[1].set()

            assert await looking


async def test_an_error_that_nobody_expected_does_not_end_the_readings(
    hasty: None,
) -> None:
    fails = [True]

    def on_change() -> None:
        if fails.pop():
            raise RuntimeError("unexpected")

    with serving_keys(A) as server:
        async with kept_fresh(server.url, QUICK, on_change) as source:
            server.keys = [B]
            await until(lambda: not fails)
            fails.append(False)
            server.keys = [RSA]

            await until(lambda: source.find("rsa"))


async def test_a_source_that_gives_nothing_in_time_is_as_one_that_is_away(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = KeyServer(A)
    held_up = HeldUp(published)
    with answering(held_up) as url:
        async with kept_fresh(url, RARELY) as source:
            monkeypatch.setattr(keys, "_READ_SECONDS", 0.05)

            with pytest.raises(KeysUnavailable):
                await source.find_anew("b")
            assert source.find("a")
            held_up.go_on[0].set()


async def test_nobody_waits_for_ever_for_an_unknown_key(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_PATIENCE_SECONDS", 0.05)
    file.write(jwks(A))
    source = KeySource(str(file), RARELY, lambda: None)
    await source.start()

    with pytest.raises(KeysUnavailable):  # nothing reads
        await source.find_anew("b")


async def test_only_so_many_wait_for_unknown_keys_at_a_time(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_ASKING", 2)
    file.write(jwks(A))
    source = KeySource(str(file), RARELY, lambda: None)
    await source.start()
    for _ in range(3):  # whoever has looked makes room for another
        looking = [asyncio.create_task(source.find_anew("invented")) for _ in range(2)]
        await asyncio.sleep(0)  # they look now
        assert not any(task.done() for task in looking)

        refused = asyncio.create_task(source.find_anew("b"))
        await asyncio.sleep(0)
        assert refused.done()  # it did not wait
        assert isinstance(refused.exception(), KeysUnavailable)

        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)


async def test_a_process_that_replaces_another_starts_also_without_keys(
    hasty: None, file: File
) -> None:
    """It serves those whom it can meanwhile, and reads them soon."""
    file.write("{")
    source = KeySource(str(file), RARELY, lambda: None)

    await source.start(strict=False)

    assert source.find("a") is None
    task = asyncio.create_task(source.keep_fresh())
    file.write(jwks(A))
    await until(lambda: source.find("a"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_reading_that_changes_nothing_is_told_of_only_when_somebody_asked_for_it(
    hasty: None,
) -> None:
    told = "the keys were reloaded, and nothing has changed"
    with serving_keys(A) as server, capture_logs() as lines:
        async with kept_fresh(server.url, QUICK) as source:
            await until(lambda: server.asked > 3)
            assert [line for line in lines if line["event"] == told] == []

            source.refresh(tell=True)
            await until(lambda: [line for line in lines if line["event"] == told])
