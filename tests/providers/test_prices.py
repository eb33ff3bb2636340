"""When a price may start, and what has to be confirmed."""

import pytest

from bourse.v1.events_pb2 import PriceOverride, PriceVersion, Unit, UnitPrice
from services.providers import prices
from services.providers.registration import Invalid

NOW_MS = 1_700_000_030_000  # half past a minute
MINUTE_MS = 1_700_000_040_000
DAY_MS = 86_400_000


def listed(prompt: int, completion: int, **more: object) -> PriceVersion:
    units = {"cache_read": Unit.UNIT_CACHE_READ, "request": Unit.UNIT_REQUEST}
    entries = [
        UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=prompt),
        UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=completion),
        *(
            UnitPrice(unit=units[name], price_pico=value)  # type: ignore[arg-type]
            for name, value in more.items()
            if name in units
        ),
    ]
    fields = {name: value for name, value in more.items() if name not in units}
    return PriceVersion(entries=entries, **fields)  # type: ignore[arg-type]


def accept(
    asked: PriceVersion, *existing: PriceVersion, now_ms: int = NOW_MS, **flags: bool
) -> PriceVersion:
    return prices.next_version(
        asked,
        existing,
        id="pr_new",
        now_ms=now_ms,
        commission_bps=0 if flags.get("house") else 500,
        increase_notice_ms=DAY_MS,
        **flags,
    )


def in_force(prompt: int, completion: int, **more: object) -> PriceVersion:
    return listed(prompt, completion, effective_at_ms=1, **more)


def test_a_first_price_starts_at_once_and_carries_the_commission() -> None:
    version = accept(listed(100, 400))
    assert version.effective_at_ms == NOW_MS
    assert version.commission_bps == 500
    assert version.id == "pr_new"


def test_a_decrease_starts_with_the_next_full_minute() -> None:
    assert accept(listed(90, 400), in_force(100, 400)).effective_at_ms == MINUTE_MS


def test_an_increase_starts_after_its_notice() -> None:
    assert accept(listed(90, 401), in_force(100, 400)).effective_at_ms == NOW_MS + DAY_MS


def test_the_house_may_change_at_once() -> None:
    version = accept(listed(200, 400), in_force(100, 400), house=True)
    assert (version.effective_at_ms, version.commission_bps) == (NOW_MS, 0)


@pytest.mark.parametrize("offset_ms", [-1, -DAY_MS])
def test_a_price_is_never_retroactive(offset_ms: int) -> None:
    asked = listed(100, 400, effective_at_ms=NOW_MS + offset_ms)
    with pytest.raises(Invalid) as refusal:
        accept(asked)
    assert refusal.value.field == "/effective_at"


@pytest.mark.parametrize(
    ("asked", "at_ms"),
    [
        (listed(101, 400), NOW_MS + DAY_MS - 1),
        (listed(99, 400), MINUTE_MS - 1),
        # what had no price of its own was charged as something
        (listed(100, 400, cache_read=101), MINUTE_MS),
        (listed(100, 400, request=1), MINUTE_MS),
        (
            listed(
                100,
                400,
                overrides=[
                    PriceOverride(
                        prompt_tokens_over=1_000,
                        entries=[UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=401)],
                    )
                ],
            ),
            MINUTE_MS,
        ),
        (listed(100, 400, discount_numerator=11, discount_denominator=10), MINUTE_MS),
    ],
    ids=["dearer", "before the minute", "cache", "request", "large prompts", "markup"],
)
def test_a_start_before_the_rules_allow_it_is_refused(asked: PriceVersion, at_ms: int) -> None:
    asked.effective_at_ms = at_ms
    with pytest.raises(Invalid) as refusal:
        accept(asked, in_force(100, 400))
    assert refusal.value.field == "/effective_at"


def test_a_dearer_list_with_a_discount_that_makes_it_cheaper_is_a_decrease() -> None:
    asked = listed(150, 600, discount_numerator=1, discount_denominator=2)
    assert accept(asked, in_force(100, 400)).effective_at_ms == MINUTE_MS


def test_an_increase_is_judged_against_what_is_in_force_then() -> None:
    scheduled = listed(50, 200, effective_at_ms=NOW_MS + 10 * DAY_MS)
    asked = listed(100, 400, effective_at_ms=NOW_MS + 20 * DAY_MS)
    assert accept(asked, in_force(100, 400), scheduled).effective_at_ms == asked.effective_at_ms


def test_two_prices_cannot_start_at_one_moment() -> None:
    scheduled = listed(90, 400, effective_at_ms=MINUTE_MS)
    with pytest.raises(Invalid) as refusal:
        accept(listed(80, 400, effective_at_ms=MINUTE_MS), in_force(100, 400), scheduled)
    assert refusal.value.field == "/effective_at"


def test_a_moment_that_was_not_asked_for_moves_on_if_it_is_taken() -> None:
    scheduled = listed(90, 400, effective_at_ms=MINUTE_MS)
    version = accept(listed(80, 400), in_force(100, 400), scheduled)
    assert version.effective_at_ms == MINUTE_MS + 60_000


@pytest.mark.parametrize(
    "asked",
    [listed(1_001, 400), listed(100, 39), listed(0, 400), listed(100, 0)],
    ids=["more than tenfold", "less than a tenth", "free prompt", "free output"],
)
def test_a_jump_needs_to_be_confirmed(asked: PriceVersion) -> None:
    with pytest.raises(Invalid) as refusal:
        accept(asked, in_force(100, 400))
    assert refusal.value.field == "/confirm"
    accept(asked, in_force(100, 400), confirm=True)


def test_exactly_tenfold_needs_no_confirmation() -> None:
    accept(listed(1_000, 400), in_force(100, 400))


def test_free_is_free_without_being_asked_twice() -> None:
    accept(listed(0, 0), in_force(100, 400), free=True)
    with pytest.raises(Invalid):
        accept(listed(0, 0))


@pytest.mark.parametrize(
    ("price", "field"),
    [
        (PriceVersion(), "/entries"),
        (PriceVersion(entries=[UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=1)]), "/entries"),
        (listed(-1, 1), "/entries/0/price_pico"),
        (listed(1, 10**16), "/entries/1/price_pico"),
        (
            PriceVersion(entries=[UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=1)] * 2),
            "/entries/1/unit",
        ),
        (PriceVersion(entries=[UnitPrice(price_pico=1)]), "/entries/0/unit"),
        (listed(1, 1, discount_numerator=1), "/discount/denominator"),
        (
            listed(1, 1, discount_numerator=-1, discount_denominator=2),
            "/discount/numerator",
        ),
        (
            listed(1, 1, overrides=[PriceOverride(prompt_tokens_over=5)]),
            "/overrides/0/entries",
        ),
        (
            listed(
                1,
                1,
                overrides=[
                    PriceOverride(
                        prompt_tokens_over=at,
                        entries=[UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=1)],
                    )
                    for at in (9, 5)
                ],
            ),
            "/overrides/1/prompt_tokens_over",
        ),
    ],
)
def test_a_bad_price_list_names_its_field(price: PriceVersion, field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        accept(price)
    assert refusal.value.field == field


def test_published_are_the_version_in_force_and_those_dated() -> None:
    old = listed(300, 1, effective_at_ms=1)
    now = listed(200, 1, effective_at_ms=NOW_MS - 1)
    later = listed(100, 1, effective_at_ms=NOW_MS + DAY_MS)
    shown = prices.published([old, now, later], NOW_MS)
    assert [(p.effective_at_ms, p.ends_at_ms) for p in shown] == [
        (NOW_MS - 1, NOW_MS + DAY_MS),
        (NOW_MS + DAY_MS, 0),
    ]
    assert prices.in_force([old, now, later], NOW_MS) == now
    assert prices.in_force([later], NOW_MS) is None


def test_a_version_starts_at_its_moment_and_not_before() -> None:
    later = listed(100, 1, effective_at_ms=NOW_MS)
    assert prices.in_force([later], NOW_MS - 1) is None
    assert prices.in_force([later], NOW_MS) == later
