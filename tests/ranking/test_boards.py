"""How the board counts, against the rules written down once more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ranking.boards import Publication, Row, Volume, most_used, window

OPEN = Publication(min_accounts=1, max_account_share=1.0)
PUBLIC = Publication(min_accounts=20, max_account_share=0.5)


def volume(model: str, tokens: int, accounts: int = 20, largest: int | None = None) -> Volume:
    """A model's use; its tokens are a third prompt, and evenly spread unless `largest` is given."""
    each = -(-tokens // max(1, accounts))
    most = each if largest is None else largest
    return Volume(model, tokens // 3, tokens - tokens // 3, tokens // 10, accounts, most)


def shown(rows: list[Row]) -> list[tuple[int, str, int]]:
    return [(row.rank, row.model, row.prompt_tokens + row.completion_tokens) for row in rows]


def test_models_rank_by_prompt_and_completion_tokens_and_ties_by_name() -> None:
    rows = most_used([volume("b", 300), volume("a", 300), volume("c", 900)], OPEN, 50)
    assert shown(rows) == [(1, "c", 900), (2, "a", 300), (3, "b", 300)]
    assert [row.share for row in rows] == [0.6, 0.2, 0.2]
    assert rows[0].prompt_tokens == 300


def test_what_is_beyond_the_limit_is_other() -> None:
    rows = most_used([volume(f"m{n:02}", 1_000 - n) for n in range(60)], OPEN, 50)
    assert len(rows) == 51
    assert shown(rows)[-1] == (0, "", sum(1_000 - n for n in range(50, 60)))
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_a_model_nobody_got_a_token_from_is_not_on_the_board() -> None:
    assert most_used([volume("a", 0)], OPEN, 50) == []
    assert shown(most_used([volume("a", 0), volume("b", 1)], OPEN, 50)) == [(1, "b", 1)]


def test_few_accounts_or_a_dominant_one_are_folded_into_other() -> None:
    volumes = [
        volume("wide", 900), volume("just", 800, largest=400), volume("heavy", 700, largest=351),
        volume("narrow", 600, accounts=19),
    ]  # fmt: skip
    assert shown(most_used(volumes, PUBLIC, 50)) == [
        (1, "wide", 900),
        (2, "just", 800),
        (0, "", 1300),
    ]


def test_a_suppressed_cell_is_never_alone_in_other() -> None:
    volumes = [volume("a", 900), volume("b", 500), volume("secret", 700, accounts=3)]
    assert shown(most_used(volumes, PUBLIC, 50)) == [(1, "a", 900), (0, "", 1200)]
    assert most_used(volumes[2:], PUBLIC, 50) == []
    assert shown(most_used(volumes[1:], PUBLIC, 50)) == [(0, "", 1200)]


def test_windows_are_whole_days_and_complete_unless_they_run() -> None:
    complete, running = window(7, 100, running=False), window(7, 100, running=True)
    assert (complete.first_day, complete.end_day, complete.partial) == (93, 100, False)
    assert (running.first_day, running.end_day, running.partial) == (94, 101, True)


volumes = st.lists(
    st.builds(
        volume,
        model=st.text("abc", min_size=1, max_size=4),
        tokens=st.integers(0, 5_000),
        accounts=st.integers(1, 40),
        largest=st.none() | st.integers(1, 3_000),
    ),
    max_size=12,
    unique_by=lambda made: made.model,
)


@given(volumes, st.sampled_from([OPEN, PUBLIC]), st.integers(1, 6))
def test_a_board_tells_the_whole_and_nothing_suppressed(
    made: list[Volume], publication: Publication, limit: int
) -> None:
    rows = most_used(made, publication, limit)
    by_model = {each.model: each for each in made}
    named = [row for row in rows if row.rank]
    other = [row for row in rows if not row.rank]

    assert [row.rank for row in named] == list(range(1, len(named) + 1))
    assert len(named) <= limit
    assert len(other) <= 1
    assert rows[len(named) :] == other, "other comes last"

    totals = [row.prompt_tokens + row.completion_tokens for row in named]
    assert totals == sorted(totals, reverse=True)
    for row in named:
        cell = by_model[row.model]
        assert cell.accounts == row.accounts >= publication.min_accounts
        assert cell.largest_account_tokens <= publication.max_account_share * cell.tokens

    hidden = [each for each in made if each.tokens and each.model not in {r.model for r in named}]
    if other:
        assert other[0].prompt_tokens == sum(each.prompt_tokens for each in hidden)
        assert other[0].requests == sum(each.requests for each in hidden)
        lone = len(hidden) == 1 and not publication.allows(hidden[0])
        assert not lone, "a suppressed cell could be read off"
        assert sum(row.share for row in rows) == pytest.approx(1)
    else:
        assert len(hidden) <= (0 if named else 1)
