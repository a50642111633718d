"""The accountant of the tiers: sums that are always right, and the order of leaving.

Must never need a device.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inferx.agent.tiers.accountant import Accountant, Cost, Tier
from inferx.errors import InferxError, InvalidState, NoCapacity, NotFound

COSTS = {
    Tier.GPU: Cost(0.0, 1e15),
    Tier.PINNED: Cost(0.1, 5e10),
    Tier.PAGEABLE: Cost(0.1, 1e10),
    Tier.FILE: Cost(0.2, 3e9),
    Tier.BLOB: Cost(1.0, 3e8),
}


def accountant(pinned: int = 100, file: int = 1000) -> Accountant:
    return Accountant({Tier.PINNED: pinned, Tier.FILE: file}, COSTS, cold_s=60.0)


def add(books: Accountant, id: str, tier: Tier, size_bytes: int) -> None:
    books.claim(id, tier, size_bytes)
    books.settle(id, tier)


def test_room_is_taken_when_a_copy_begins_to_come() -> None:
    books = accountant()
    books.claim("a", Tier.PINNED, 60)
    assert (books.free_bytes(Tier.PINNED), books.hottest("a")) == (40, None)
    with pytest.raises(NoCapacity, match="60 bytes are needed, 40 are free"):
        books.claim("b", Tier.PINNED, 60)
    with pytest.raises(InvalidState):
        books.pin("a", Tier.PINNED)
    books.settle("a", Tier.PINNED, 20)  # most of it was zeros
    assert (books.free_bytes(Tier.PINNED), books.hottest("a")) == (80, Tier.PINNED)
    books.drop("a", Tier.PINNED)
    with pytest.raises(NotFound):
        books.drop("a", Tier.PINNED)
    assert books.free_bytes(Tier.PINNED) == 100
    assert books.free_bytes(Tier.BLOB) is None


def test_what_saves_most_per_byte_stays_and_what_is_in_use_never_leaves() -> None:
    books = accountant()
    for id, size_bytes, hits in (("big", 50, 2), ("small", 10, 2), ("cold", 20, 0)):
        add(books, id, Tier.PINNED, size_bytes)
        add(books, id, Tier.FILE, size_bytes)
        for _ in range(hits):
            books.hit(id)
    assert books.victims(Tier.PINNED, 20) == []
    assert books.victims(Tier.PINNED, 40) == ["cold"]
    assert books.victims(Tier.PINNED, 90) == ["cold", "big"]
    books.pin("big", Tier.PINNED)
    assert books.victims(Tier.PINNED, 50) == ["cold", "small"]
    with pytest.raises(NoCapacity) as refused:
        books.victims(Tier.PINNED, 90)
    assert refused.value.details["free_bytes"] == 50
    with pytest.raises(InvalidState, match="in use"):
        books.drop("big", Tier.PINNED)


def test_what_was_popular_grows_old() -> None:
    books = accountant()
    add(books, "old", Tier.PINNED, 50)
    for _ in range(10):
        books.hit("old")
    for round in range(60):
        id = f"new-{round}"
        add(books, id, Tier.PINNED, 50)
        books.hit(id)
        (victim,) = books.victims(Tier.PINNED, 50)
        books.drop(victim, Tier.PINNED, evicted=True)
        if victim == "old":
            assert round > 3
            return
    pytest.fail("it was never given up")


class Books(RuleBasedStateMachine):
    """Any order of verbs leaves the sums right, and refusals change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.books = accountant(pinned=100, file=150)

    ids = st.sampled_from("abcd")
    tiers = st.sampled_from([Tier.PINNED, Tier.FILE, Tier.BLOB])
    sizes = st.integers(0, 70)

    def attempt(self, verb: str, *arguments: object, **named: object) -> None:
        before = {tier: self.books.used_bytes(tier) for tier in Tier}
        try:
            getattr(self.books, verb)(*arguments, **named)
        except InferxError:
            assert before == {tier: self.books.used_bytes(tier) for tier in Tier}

    @rule(id=ids, tier=tiers, size=sizes)
    def claim(self, id: str, tier: Tier, size: int) -> None:
        self.attempt("claim", id, tier, size)

    @rule(id=ids, tier=tiers, size=st.none() | sizes)
    def settle(self, id: str, tier: Tier, size: int | None) -> None:
        self.attempt("settle", id, tier, size)

    @rule(id=ids, tier=tiers, verb=st.sampled_from(["pin", "unpin"]))
    def use(self, id: str, tier: Tier, verb: str) -> None:
        self.attempt(verb, id, tier)

    @rule(id=ids)
    def hit(self, id: str) -> None:
        self.attempt("hit", id)

    @rule(id=ids, tier=tiers, evicted=st.booleans())
    def drop(self, id: str, tier: Tier, evicted: bool) -> None:
        self.attempt("drop", id, tier, evicted=evicted)

    @rule(tier=tiers, size=sizes)
    def make_room(self, tier: Tier, size: int) -> None:
        try:
            victims = self.books.victims(tier, size)
        except NoCapacity:
            return
        for victim in victims:
            self.books.drop(victim, tier, evicted=True)
        # The room is there now; a newcomer of that size fits.
        self.books.claim("newcomer", tier, size)
        self.books.drop("newcomer", tier)

    @invariant()
    def sums_are_right(self) -> None:
        self.books.check()


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
