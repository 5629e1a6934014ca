"""Changes that cannot be made: nothing of them may be in force, then or later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.config.schema import Config, load_config
from guard.errors import GuardError, InvalidPolicy, ModelError
from guard.plans.screens import TextPlans
from guard.policies.store import store_of
from guard.policies.versions import Change
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.policies.live import LiveConfiguration
from server.policies.opening import Requirements, open_policies
from server.proxy.app import ProxyApp
from tests.server.policies.stand import ADMIN, administered, until, write_config

NAMES = {"guards": ["names"], "action": "block"}
UNREAD = {"guards": ["words"], "action": "flag", "screen": {"ocr": True}}
"""Nothing that reads text in images is loaded here: it cannot act."""


def test_what_was_refused_does_not_come_in_behind_another_change(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        store = store_of(load_config(tmp_path / "config.toml"))
        refused = 'inference_guard_policy_refusals_total{source="store"}'

        def has_refused(count: int) -> bool:
            return f"{refused} {count}.0" in admin.proxy.metrics.render().decode()

        # as another server would, which can do more than this one
        store.append([Change("strict", "put", UNREAD, "other")], store.revision())
        until(lambda: has_refused(1), "the refusal")
        store.append([Change("people", "put", NAMES, "other")], store.revision())
        until(lambda: has_refused(2), "the second refusal")
        assert admin.said("forbidden") == "blocked"
        # until it is mended
        mended = Change("strict", "put", NAMES, "other")
        store.append([mended], store.revision())
        until(lambda: admin.said("Tom") == "blocked", "the change")
        assert admin.said("Tom", guard={"policy": "people"}) == "blocked"
        store.database.close()


def test_a_change_that_cannot_be_prepared_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(app: ProxyApp, config: Config) -> Callable[[], None]:
        raise RuntimeError("no memory")

    with administered(tmp_path) as admin:
        with monkeypatch.context() as patch:
            patch.setattr(ProxyApp, "follow", follow)
            assert admin.put("strict", NAMES).status_code == 500
        assert admin.ask("GET", "strict/versions").json()["data"][0]["version"] == 1
        assert admin.said("forbidden") == "blocked"
        assert admin.put("strict", NAMES).json()["version"] == 2
        acts = [line.get("act") for line in admin.proxy.audit_lines(3)]
        assert acts.count("put") == 1


def test_a_draft_is_checked_as_a_change_is(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        answer = admin.ask("POST", "strict/diff", json={"settings": UNREAD})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_policy"
        # what is spelled though it is the default differs in nothing
        spelled = {"guards": ["words"], "action": "block", "on_error": "closed"}
        draft = admin.ask("POST", "strict/diff", json={"settings": spelled}).json()
        assert draft["changes"] == [] and draft["weaker"] is False


def test_the_shadow_undoes_no_change_of_another_server(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        store = store_of(load_config(tmp_path / "config.toml"))
        for _ in range(3):
            store.append([Change("strict", "put", NAMES, "other")], store.revision())
            answer = admin.ask("PUT", "strict/shadow", json={"settings": {"guards": ["words"]}})
            assert answer.status_code in {200, 409}
            until(lambda: admin.ask("GET", "strict").json()["settings"]["guards"] == ["names"])
            admin.put("strict", {"guards": ["words"], "action": "block"})
        store.database.close()


@pytest.mark.parametrize("why", ["two\nlines", "\x1b[2J", "x" * 501, "\0"])
def test_a_reason_is_one_short_line(why: str, tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for answer in (
            admin.put("strict", NAMES, why=why),
            admin.ask("DELETE", "strict", params={"why": why}),
        ):
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "why")
        assert admin.ask("GET", "strict").json()["version"] == 1


@pytest.mark.parametrize("number", ["0", "-1", "1.0", "0" * 10 + "1" + "9" * 5000, "x"])
def test_a_parameter_that_is_no_number_is_refused(number: str, tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for path in (f"strict/versions?limit={number}", f"strict/versions/{number}"):
            answer = admin.ask("GET", path)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] in {"limit", "version"}


def test_names_and_shadows_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for name in ("shadow", "a/versions/3", "strict/shadow/promoted", "a%20b"):
            answer = admin.put(name, NAMES)
            assert answer.status_code == 400, (name, answer.text)
            assert answer.json()["error"]["code"] == "invalid_policy"
        assert admin.ask("DELETE", "strict/shadow").status_code == 400
        assert admin.ask("GET", "strict").json()["version"] == 1


def test_all_policies_together_have_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with administered(tmp_path) as admin:
        monkeypatch.setattr("guard.policies.effective.MAX_CONFIG_BYTES", 300)
        assert admin.put("a", {**NAMES, "message": "m"}).status_code == 201
        answer = admin.put("b", {**NAMES, "message": "m" * 300})
        assert answer.status_code == 400 and "bytes" in answer.json()["error"]["message"]


def opened(config: Config) -> LiveConfiguration:
    live = LiveConfiguration(config)
    metrics = Metrics(config)
    requirements, recorder = Requirements(lambda: None), Recorder(metrics.verdicts, None)
    policies = open_policies(config, live, requirements, recorder, metrics)
    assert policies is not None
    policies.store.database.close()
    return live


def test_all_but_the_policies_stays_as_it_was_started(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    text = write_config(tmp_path)
    path.write_text(text + '[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:9"\nplugin = true\n')
    config = load_config(path).model_copy(update={"upstreams": ()})  # the command line's
    assert opened(config).config.upstreams == ()
    # what was loaded is of the file that was read then
    path.write_text(text.replace('name = "names"', 'name = "people"'))
    with pytest.raises(GuardError, match=r"\[patterns\]: has changed since it was read"):
        opened(config)


def test_a_screen_that_did_not_load_is_not_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No policy names it at the start, so that nothing would read requests."""

    def fail(source: str) -> Any:
        raise ModelError("its file is gone")

    policies = '[policies.strict]\nguards = []\nscreen.upstream_policy = "p"\n'
    upstream = '[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:9"\nplugin = true\n'
    path = tmp_path / "config.toml"
    path.write_text(write_config(tmp_path, policies, upstream))
    config = load_config(path)
    monkeypatch.setattr("guard.plans.screens.read_patterns", fail)
    plans = TextPlans(config)
    assert plans.any_screens
    policy = config.policies["strict"].model_copy(update={"guards": ("words",)})
    wanted = config.model_copy(update={"policies": {"strict": policy}})
    with pytest.raises(InvalidPolicy, match="its file is gone"):
        Requirements(lambda: plans).check(config, wanted, "strict")


def test_auditors_look_and_change_nothing(tmp_path: Path) -> None:
    with administered(tmp_path, more='[tenants]\ndatabase = "tenants.sqlite"\n') as admin:
        url = f"{admin.proxy.url}/guard/v1/keys"
        made = httpx.post(
            url, json={"name": "reader", "role": "auditor"}, headers=ADMIN, timeout=20
        )
        assert made.status_code == 201, made.text
        auditor = {"Authorization": f"Bearer {made.json()['key']}"}
        settings = {"settings": NAMES}
        changes: list[tuple[str, str, Any]] = [
            ("PUT", "strict", settings),
            ("DELETE", "strict", None),
            ("POST", "strict/rollback", {"to": 1}),
            ("PUT", "strict/shadow", settings),
            ("DELETE", "strict/shadow", None),
            ("POST", "strict/shadow/promote", {}),
        ]
        for method, path, body in changes:
            refused = admin.ask(method, path, json=body, headers=auditor)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_forbidden")
        looks = [("GET", path, None) for path in ("strict", "strict/versions", "strict/diff")]
        for method, path, body in [*looks, ("POST", "strict/replay", settings)]:
            assert admin.ask(method, path, json=body, headers=auditor).status_code == 200, path
        assert admin.ask("GET", "strict").json()["version"] == 1
