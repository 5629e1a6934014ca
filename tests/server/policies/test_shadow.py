"""A second policy beside the one in force: it judges live requests, and does nothing."""

from __future__ import annotations

from pathlib import Path

from tests.server.policies.stand import administered


def test_a_shadow_judges_and_does_nothing(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        shadow = {"guards": ["words", "names"], "action": "block"}
        version = admin.ask("PUT", "strict/shadow", json={"settings": shadow, "why": "try"}).json()
        assert version["act"] == "shadow" and version["settings"]["shadow"] == shadow
        outcomes = [admin.said(text) for text in ("Tom", "hello", "forbidden")]
        assert outcomes == ["pass", "pass", "blocked"]
        told = [line["shadow"] for line in admin.proxy.audit_lines(5) if "shadow" in line]
        assert told == [
            {"outcome": "blocked", "guards": {"names": "block"}},
            {"outcome": "pass", "guards": {}},
            {"outcome": "blocked", "guards": {"words": "block"}},
        ]
        metrics = admin.proxy.metrics.render().decode()
        counted = 'inference_guard_shadow_verdicts_total{outcome="pass",policy="strict",shadow='
        assert f'{counted}"blocked"}} 1.0' in metrics
        assert (
            'inference_guard_verdicts_total{model="other",outcome="pass",policy="strict"} 2.0'
            in (metrics)
        )


def test_a_shadow_is_put_in_force(tmp_path: Path) -> None:
    policies = (
        '[policies.strict]\nguards = ["words"]\naction = "block"\nkeep_text = true\n'
        '[policies.strict.shadow]\nguards = ["names"]\naction = "flag"\n'
    )
    with administered(tmp_path, policies) as admin:
        assert admin.ask("GET", "strict").json()["shadow"]["guards"] == ["names"]
        promoted = admin.ask("POST", "strict/shadow/promote", json={"why": "good"}).json()
        assert promoted["act"] == "promote"
        # what a shadow has no use for stays
        assert promoted["settings"] == {"guards": ["names"], "action": "flag", "keep_text": True}
        assert [admin.said(text) for text in ("Tom", "forbidden")] == ["flagged", "pass"]
        again = admin.ask("POST", "strict/shadow/promote", json={})
        assert again.status_code == 400 and "no shadow" in again.json()["error"]["message"]


def test_a_shadow_is_taken_away(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        admin.ask("PUT", "strict/shadow", json={"settings": {"guards": ["names"]}})
        assert admin.ask("DELETE", "strict/shadow").json()["settings"].get("shadow") is None
        admin.said("Tom")
        assert all("shadow" not in line for line in admin.proxy.audit_lines(4))
