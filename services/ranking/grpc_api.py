"""The Ranking service over rpc: read rollups, let boards count, translate."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from bourse.database import Database
from bourse.rpc import Context, RpcError, StatusCode
from bourse.v1.ranking_pb2 import BoardRow, GetBoardRequest, GetBoardResponse
from services.ranking import boards, store

DAY_MS = 86_400_000


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class RankingApi:
    """Boards, each read once per `cache_ms` however many ask for it."""

    def __init__(
        self,
        database: Database,
        publication: boards.Publication,
        *,
        running_windows: bool,
        cache_ms: int,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._database = database
        self._publication = publication
        self._running = running_windows
        self._cache_ms = cache_ms
        self._clock = clock
        self._cached: dict[tuple[int, int], GetBoardResponse] = {}
        self._reading: dict[tuple[int, int], asyncio.Lock] = {}

    async def GetBoard(self, request: GetBoardRequest, context: Context) -> GetBoardResponse:
        """Answer one board. NOT_FOUND: no such board; INVALID_ARGUMENT names the field."""
        days, limit = _checked(request)
        key = (days, limit)
        async with self._reading.setdefault(key, asyncio.Lock()):
            now_ms = self._clock()
            cached = self._cached.get(key)
            if cached is None or not 0 <= now_ms - cached.as_of_ms < self._cache_ms:
                cached = self._cached[key] = await self._read(days, limit, now_ms)
            return cached

    async def _read(self, days: int, limit: int, now_ms: int) -> GetBoardResponse:
        window = boards.window(days, now_ms // DAY_MS, self._running)
        async with self._database.read() as connection:
            volumes = await store.volumes(connection, window.first_day, window.end_day)
            rows = boards.most_used(volumes, self._publication, limit)
            if rows and rows[-1].rank == 0:
                named = [row.model for row in rows[:-1]]
                accounts = await store.count_accounts(
                    connection, window.first_day, window.end_day, named
                )
                rows[-1] = replace(rows[-1], accounts=accounts)
        return GetBoardResponse(
            rows=[_message(row) for row in rows],
            as_of_ms=now_ms,
            start_ms=window.first_day * DAY_MS,
            end_ms=window.end_day * DAY_MS,
            partial=window.partial,
            formula_version=boards.MOST_USED_VERSION,
        )


def _checked(request: GetBoardRequest) -> tuple[int, int]:
    if request.board != boards.MOST_USED:
        raise RpcError(StatusCode.NOT_FOUND, f"no board {request.board!r}", field="board")
    if request.days not in boards.WINDOW_DAYS:
        known = ", ".join(str(days) for days in boards.WINDOW_DAYS)
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"days is one of {known}", field="days")
    if not 0 <= request.limit <= boards.ROWS_MAX:
        message = f"limit is at most {boards.ROWS_MAX}"
        raise RpcError(StatusCode.INVALID_ARGUMENT, message, field="limit")
    return request.days, request.limit or boards.ROWS_MAX


def _message(row: boards.Row) -> BoardRow:
    return BoardRow(
        rank=row.rank,
        model=row.model,
        total_tokens=row.prompt_tokens + row.completion_tokens,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        requests=row.requests,
        share=row.share,
        accounts=row.accounts,
    )
