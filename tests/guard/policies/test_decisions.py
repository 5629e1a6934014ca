"""What policies decide on scores that were recorded, without any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.artifact import Artifact, ArtifactMeta
from guard.config.schema import Config, load_config
from guard.errors import ConfigError
from guard.policies.decisions import Decisions
from guard.policies.recorded import Recorded
from guard.policies.replay import replay
from guard.verdict import Done, GuardVerdict, Outcome, Verdict
from server.policies.shadows import Shadows

POLICIES = """
[[models]]
name = "m"
source = "./model"

[[guards]]
name = "g"
artifact = "g.safetensors"

[policies.p]
guards = ["g"]
"""


def meta(**settings: Any) -> ArtifactMeta:
    model = {"name": "t", "architecture": "A", "fingerprint": "0" * 64, "layers": 4, "width": 8}
    fitted = {"sense_layers": [1], "act_layers": [2], "schedule": [1.0], "pool": 1, "rest": 1}
    return ArtifactMeta.model_validate(
        {
            "method": "steer",
            "concept": "topic/test",
            "created": "2026-01-31",
            "model": model,
            "seams": ["hidden"],
            "settings": {**fitted, "threshold": 0.5, "strength": 1.0, **settings},
        }
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tensors = {name: np.ones((1, 8), "f4") for name in ("gates", "directions")}
    Artifact(meta(recheck=0.7), tensors).save(tmp_path / "g.safetensors")
    (tmp_path / "config.toml").write_text(POLICIES)
    return load_config(tmp_path / "config.toml")


def request(score: float | None, action: str = "none", threshold: float = 0.5) -> Recorded:
    outcome = {"none": "pass", "steer": "steered", "say": "said"}.get(action, action)
    known = {"score": score, "threshold": threshold, "fired": action != "none", "action": action}
    return Recorded("r", "t", "acme", "m", "p", outcome, {"g": known})


def under(config: Config, **settings: Any) -> Config:
    policy = config.policies["p"].model_copy(update=settings)
    return config.model_copy(update={"policies": {"p": policy}})


def outcome(config: Config, recorded: Recorded, **settings: Any) -> str:
    earlier = Decisions(config, None)
    return earlier.under(under(config, **settings)).decide(recorded, "p", earlier).outcome


def test_the_policy_in_force_decides_as_it_did(config: Config) -> None:
    assert outcome(config, request(0.6, "steer")) == "steered"
    assert outcome(config, request(0.4)) == "pass"
    assert outcome(config, request(None)) == "pass"  # it had nothing to read


def test_thresholds_and_actions_are_decided_anew(config: Config) -> None:
    assert outcome(config, request(0.6, "steer"), thresholds={"g": 0.65}) == "pass"
    assert outcome(config, request(0.4), thresholds={"g": 0.3}) == "steered"
    assert outcome(config, request(0.6, "steer"), action="block") == "blocked"
    assert outcome(config, request(0.6, "steer"), action="observe") == "pass"


def test_scores_of_generated_tokens_have_their_own_threshold(config: Config) -> None:
    # 0.6 on a generated token did not fire: its threshold is 0.7, which a higher one raises
    assert outcome(config, request(0.6, threshold=0.7)) == "pass"
    assert outcome(config, request(0.75, "steer", 0.7), thresholds={"g": 0.8}) == "pass"
    assert outcome(config, request(0.75, "steer", 0.7), thresholds={"g": 0.2}) == "steered"


def test_what_a_method_did_by_itself_stays(config: Config) -> None:
    # an answer that could not be steered ended with the message
    assert outcome(config, request(0.8, "say"), message="No.") == "said"
    assert outcome(config, request(0.8, "say"), action="flag") == "flagged"


def test_guards_of_an_upstream_do_the_same_under_any_policy(config: Config) -> None:
    known = {"score": 1.0, "threshold": 0.5, "fired": True, "action": "block", "method": "x"}
    recorded = Recorded("r", "t", "", "other", "p", "blocked", {"theirs": known})
    assert outcome(config, recorded) == "blocked"


def test_what_cannot_be_decided_is_counted_apart(config: Config) -> None:
    nothing = Recorded("r", "t", "", "m", "p", "pass", {})
    failed = Recorded("r", "t", "", "m", "p", "error", {})
    earlier = Decisions(config, None)
    after = earlier.under(under(config, action="flag"))
    requests = [request(0.6, "steer"), nothing, failed, request(0.2)]
    found = replay(requests, "p", earlier, after, show=0).as_dict()
    assert (found["read"], found["replayed"], found["changed"]) == (4, 2, 1)
    assert found["not_replayed"] == 2 and len(found["reasons"]) == 2
    assert found["transitions"] == [{"from": "steered", "to": "flagged", "count": 1}]
    assert found["guards"] == [{"guard": "g", "read": 2, "fired_before": 1, "fired_after": 1}]
    assert found["requests"] == []
    turned = replay(requests, "p", earlier, earlier.under(under(config, scope="turn")), show=1)
    assert turned.replayed == 0


def test_a_score_under_an_unknown_threshold_says_nothing_where_it_matters(config: Config) -> None:
    # of a prompt it would fire, of a generated token, whose threshold is 0.7, it would not
    unknown = request(0.6, threshold=0.9)
    earlier = Decisions(config, None)
    assert earlier.decide(unknown, "p", earlier).missing == ("g",)
    assert earlier.decide(unknown, "p").missing == ("g",)
    for score, outcome in ((0.4, "pass"), (0.8, "steered")):
        decided = earlier.decide(request(score, threshold=0.9), "p", earlier)
        assert (decided.outcome, decided.missing) == (outcome, ())


def test_a_shadow_with_the_policys_settings_says_what_the_policy_says(config: Config) -> None:
    policy = config.policies["p"]
    shadowed = under(config, shadow=policy)
    shadows = Shadows(shadowed, None)
    for score, threshold, fired in ((0.6, 0.7, False), (0.6, 0.5, True), (0.75, 0.7, True)):
        action: Done = "steer" if fired else "none"
        reading = GuardVerdict("g", "topic/test", "steer", score, threshold, fired, action)
        outcome: Outcome = "steered" if fired else "pass"
        told = shadows(Verdict("r", "m", "p", outcome, (reading,), 1.0))
        assert told is not None and told["outcome"] == outcome


def test_a_shadow_brings_no_screen_to_a_policy_without_any(tmp_path: Path, config: Config) -> None:
    more = '[[patterns]]\nname = "secrets"\nsource = "secrets"\n'
    shadow = '[policies.p.shadow]\nguards = ["secrets"]\n'
    path = tmp_path / "config.toml"
    path.write_text(POLICIES + more + shadow)
    with pytest.raises(ConfigError, match=r"shadow.guards\[0\]: reads texts"):
        load_config(path)
    path.write_text(POLICIES.replace('["g"]', '["g", "secrets"]') + more + shadow)
    assert load_config(path).policies["p"].shadow is not None
