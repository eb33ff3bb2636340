"""GetBoard over rpc, from events to rows, on both databases."""

from typing import cast

import pytest
from sqlalchemy import select

from bourse.database import Database
from bourse.rpc import Network, RpcError, StatusCode
from bourse.v1.ranking_pb2 import GetBoardRequest, GetBoardResponse
from bourse.v1.ranking_pb2_grpc import RankingStub
from services.ranking import store
from services.ranking.boards import Publication
from services.ranking.grpc_api import RankingApi
from services.ranking.tables import account_model_day
from services.ranking.tables import attempt as attempt_table
from tests.ranking.builders import DAY_MS, NOW_MS, attempt, failed
from tests.ranking.test_counting import count


class Ranking:
    """Ranking's API on a clock that a test sets."""

    def __init__(
        self, database: Database, *, k: int = 1, share: float = 1.0, running: bool = True,
        cache_ms: int = 0,
    ) -> None:  # fmt: skip
        self.now_ms = NOW_MS
        network = Network()
        api = RankingApi(
            database, Publication(k, share), running_windows=running, cache_ms=cache_ms,
            clock=lambda: self.now_ms,
        )  # fmt: skip
        network.serve(RankingStub, api)
        self._client = network.connect("local:", RankingStub)

    async def board(
        self, days: int = 1, limit: int = 0, board: str = "most_used"
    ) -> GetBoardResponse:
        request = GetBoardRequest(board=board, days=days, limit=limit)
        return cast(GetBoardResponse, await self._client.GetBoard(request))


def cells(response: GetBoardResponse) -> list[tuple[int, str, int, int, int]]:
    return [(r.rank, r.model, r.total_tokens, r.requests, r.accounts) for r in response.rows]


async def test_a_board_shows_what_was_used(database: Database) -> None:
    ranking = Ranking(database)
    assert cells(await ranking.board()) == []
    await count(
        database,
        attempt("g1", model="a/one", prompt=100, completion=20),
        attempt("g2", model="a/one", prompt=200, completion=30, account="account-2"),
        failed("g3", 1, model="a/one"),
        attempt("g3", 2, model="a/two:free", prompt=40, completion=10, charge_nano=0),
    )
    response = await ranking.board()
    assert cells(response) == [(1, "a/one", 350, 2, 2), (2, "a/two:free", 50, 1, 1)]
    assert [row.share for row in response.rows] == [0.875, 0.125]
    assert (response.rows[0].prompt_tokens, response.rows[0].completion_tokens) == (300, 50)
    assert response.as_of_ms == NOW_MS
    assert response.formula_version == "most_used/1"


async def test_windows_of_one_seven_and_thirty_days(database: Database) -> None:
    midnight = NOW_MS - NOW_MS % DAY_MS
    ages = {0, 1, 6, 7, 29, 30}
    for days in ages:
        start_ms = midnight - days * DAY_MS
        for name, finished_ms in (("first", start_ms), ("last", start_ms + DAY_MS - 1)):
            model = f"{days}-{name}"
            await count(database, attempt(model, model=model, finished_ms=finished_ms))

    def models_of(shown: set[int]) -> set[str]:
        return {f"{days}-{name}" for days in shown for name in ("first", "last")}

    running, complete = Ranking(database), Ranking(database, running=False)
    for days in (1, 7, 30):
        response = await running.board(days)
        assert response.partial
        assert {row.model for row in response.rows} == models_of({a for a in ages if a < days})
        assert {row.accounts for row in response.rows} == {1}
        assert response.end_ms - response.start_ms == days * DAY_MS
        assert response.start_ms <= NOW_MS < response.end_ms
        response = await complete.board(days)
        assert not response.partial
        known = {age for age in ages if 1 <= age <= days}
        assert {row.model for row in response.rows} == models_of(known)
        assert response.end_ms == NOW_MS - NOW_MS % DAY_MS


async def test_a_public_exchange_hides_cells_of_few_or_one_heavy_account(
    database: Database,
) -> None:
    events = [attempt(f"w{n}", model="wide", account=f"account-{n}") for n in range(4)]
    events += [attempt(f"n{n}", model="narrow", account=f"account-{n}") for n in range(2)]
    events += [attempt(f"h{n}", model="heavy", account=f"account-{n}") for n in range(3)]
    events += [attempt(f"x{n}", model="heavy", account="account-9") for n in range(4)]
    await count(database, *events)
    response = await Ranking(database, k=3, share=0.5).board()
    assert cells(response) == [(1, "wide", 4 * 42, 4, 4), (0, "", 9 * 42, 9, 4)]
    assert len(cells(await Ranking(database).board())) == 3


async def test_top_rows_and_other_with_its_accounts(database: Database) -> None:
    await count(
        database,
        attempt("g1", model="a", prompt=900),
        attempt("g2", model="b", prompt=500, account="account-2"),
        attempt("g3", model="c", prompt=100, account="account-2"),
        attempt("g4", model="c", prompt=100, account="account-3"),
    )
    assert cells(await Ranking(database).board(limit=1)) == [
        (1, "a", 912, 1, 1),
        (0, "", 736, 3, 2),
    ]


async def test_a_board_is_read_once_while_it_is_cached(database: Database) -> None:
    ranking = Ranking(database, cache_ms=1_000)
    assert cells(await ranking.board()) == []
    await count(database, attempt())
    ranking.now_ms += 999
    assert cells(await ranking.board()) == []
    assert len(cells(await ranking.board(days=7))) == 1
    ranking.now_ms += 1
    assert len(cells(await ranking.board())) == 1


@pytest.mark.parametrize(
    ("wish", "code", "field"),
    [
        ({"board": "most_loved"}, StatusCode.NOT_FOUND, "board"),
        ({"days": 2}, StatusCode.INVALID_ARGUMENT, "days"),
        ({"limit": 51}, StatusCode.INVALID_ARGUMENT, "limit"),
        ({"limit": -1}, StatusCode.INVALID_ARGUMENT, "limit"),
    ],
)
async def test_a_bad_request_names_its_field(
    database: Database, wish: dict[str, object], code: StatusCode, field: str
) -> None:
    with pytest.raises(RpcError) as raised:
        await Ranking(database).board(**wish)  # type: ignore[arg-type]
    assert (raised.value.code, raised.value.field) == (code, field)


async def test_old_accounts_are_forgotten_and_totals_stay(database: Database) -> None:
    day = NOW_MS // DAY_MS
    old = attempt("old", finished_ms=NOW_MS - 61 * DAY_MS)
    await count(database, attempt("new"), old)
    async with database.begin() as connection:
        await store.forget_accounts(connection, day - 60)
    async with database.read() as connection:
        days = [row.day for row in await connection.execute(select(account_model_day))]
        hashes = {
            row.generation: row.account_hash
            for row in await connection.execute(select(attempt_table))
        }
        (volume,) = await store.volumes(connection, day - 61, day - 60)
    assert days == [day]
    assert hashes["new"]
    assert not hashes["old"]
    assert (volume.tokens, volume.accounts) == (42, 0)
    await count(database, old)  # a replay of what was forgotten still changes nothing
    async with database.read() as connection:
        (again,) = await store.volumes(connection, day - 61, day - 60)
    assert again == volume
