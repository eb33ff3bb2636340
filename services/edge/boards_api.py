"""Public boards, as ranking counts them."""

from typing import Annotated, Protocol

from fastapi import APIRouter, Query

from bourse.v1.ranking_pb2 import GetBoardRequest, GetBoardResponse
from services.edge.http import Json, asked
from services.edge.records import iso


class RankingClient(Protocol):
    async def GetBoard(self, request: GetBoardRequest, *, timeout: float) -> GetBoardResponse: ...


def routes(ranking: RankingClient, deadline_s: float) -> APIRouter:
    router = APIRouter(prefix="/boards", tags=["Boards"], default_response_class=Json)

    @router.get("/{board}", summary="Get a board")
    async def board(
        board: str,
        days: Annotated[int, Query(ge=1, le=366)] = 1,
        limit: Annotated[int, Query(ge=1, le=50)] = 50,
    ) -> Json:
        """`most-used`: models by tokens over 1, 7 or 30 days, then one row for the others."""
        found = await asked(
            ranking.GetBoard(
                GetBoardRequest(board=board.replace("-", "_"), days=days, limit=limit),
                timeout=deadline_s,
            )
        )
        return Json(
            {
                "data": [
                    {
                        "rank": row.rank or None,
                        "model": row.model,
                        "total_tokens": row.total_tokens,
                        "prompt_tokens": row.prompt_tokens,
                        "completion_tokens": row.completion_tokens,
                        "requests": row.requests,
                        "share": row.share,
                        "n_accounts": row.accounts,
                    }
                    for row in found.rows
                ],
                "meta": {
                    "as_of": iso(found.as_of_ms),
                    "version": "v1",
                    "formula_version": found.formula_version,
                    "start_date": iso(found.start_ms),
                    "end_date": iso(found.end_ms),
                    "partial": found.partial,
                },
            }
        )

    return router
