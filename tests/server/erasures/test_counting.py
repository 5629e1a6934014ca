"""How often erasures have fired: by state and guard, whatever state they are in by then."""

from __future__ import annotations

from guard.certificate import Fired
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config
from guard.verdict import GuardVerdict, Verdict
from server.erasures.counting import Firings

ID, OTHER = "er-0123456789ab", "er-ba9876543210"
CONFIG = Config(policies={"p": PolicyConfig(), "watched": PolicyConfig(action="observe")})


def verdict(*fired: tuple[str, str], policy: str = "p") -> Verdict:
    guards = [GuardVerdict(name, "c", "steer", 1.0, 0.5, True, done, 0) for name, done in fired]
    silent = GuardVerdict(f"{ID}/silent", "c", "steer", 0.0, 0.5, False, "none")
    return Verdict("r", "tiny", policy, "pass", (*guards, silent), 1.0)


def test_a_request_counts_once_and_each_of_its_guards() -> None:
    firings = Firings(CONFIG)
    firings.begin(ID, "in force", {"shadow": Fired(requests=4, guards={f"{ID}/a": 4})})
    firings.count(verdict((f"{ID}/a", "steer"), (f"{ID}/b", "steer"), ("hp", "steer")))
    firings.count(verdict((f"{ID}/a", "block")))
    firings.count(verdict((f"{OTHER}/a", "steer")))
    assert firings.of(ID) == {
        "shadow": Fired(requests=4, guards={f"{ID}/a": 4}),
        "in force": Fired(requests=2, guards={f"{ID}/a": 2, f"{ID}/b": 1}),
    }
    assert firings.of(OTHER) is None


def test_requests_that_came_in_shadow_count_as_such_when_they_end_later() -> None:
    firings = Firings(CONFIG)
    firings.begin(ID, "shadow", {})
    firings.begin(ID, "in force", {})
    firings.count(verdict((f"{ID}/a", "observe")))
    firings.count(verdict((f"{ID}/a", "observe"), policy="watched"))
    counted = firings.of(ID)
    assert counted is not None
    assert (counted["shadow"].requests, counted["in force"].requests) == (1, 1)
