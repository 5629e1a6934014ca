"""Configurations that change while vLLM runs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.checkpoint import CONFIG  # noqa: E402
from tests.vllm.driver import run  # noqa: E402

OTHER = """
[[guards]]
name = "firm"
artifact = "firm.safetensors"
strength = 0.5
[[guards]]
name = "late"
artifact = "late.safetensors"
[policies.firm]
guards = ["firm"]
[policies.fresh]
guards = ["late", "firm"]
"""


def test_a_new_configuration_holds_for_new_requests_alone(folder: Path) -> None:
    (folder / "live.toml").write_text(CONFIG, "utf-8")
    (folder / "other.toml").write_text(OTHER, "utf-8")
    before = [
        {"prompt": prompt(40, seed=i), "tokens": 24, "policy": policy}
        for i in range(2)
        for policy in ("both", "firm", "watch")
    ]
    after = [
        {"prompt": prompt(40, seed=i), "tokens": 12, "policy": policy, "at": 12}
        for i in range(2)
        for policy in ("fresh", "firm", "watch", "none")
    ]
    (came,) = run(folder, [*before, *after], config="live.toml", reload=(10, [OTHER]))["phases"]
    (old,) = run(folder, before)["phases"]
    (new,) = run(folder, [own | {"at": 0} for own in after], config="other.toml")["phases"]
    for one, other in zip(came, [*old, *new], strict=True):
        assert one.get("tokens") == other.get("tokens")
        if "error" in one:
            assert "no policy 'watch' here: use one of none, firm, fresh" in one["error"]
            continue
        told, alike = one["guard"]["guards"], other["guard"]["guards"]
        assert [own["position"] for own in told] == [own["position"] for own in alike]
    assert any(one["tokens"] != other["tokens"] for one, other in zip(old, came[6:], strict=False))


def test_configurations_that_come_and_go_leave_nothing(folder: Path) -> None:
    (folder / "live.toml").write_text(CONFIG, "utf-8")
    texts = [OTHER.replace("0.5", f"{0.5 + i / 100}") for i in range(40)]
    asked = [
        {"prompt": prompt(40, seed=i), "tokens": 24, "policy": policy}
        for i, policy in enumerate(("both", "firm", "watch"))
    ]
    came = run(folder, asked, config="live.toml", reload=(6, texts))
    (old,) = run(folder, asked)["phases"]
    assert [one["tokens"] for one in came["phases"][0]] == [one["tokens"] for one in old]
    # two generations of three policies, and those of the requests that ran
    assert all(count <= 9 for count in came["kept"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense = 1", "nonsense"),
        (OTHER.replace("late.safetensors", "lost.safetensors"), "lost.safetensors"),
    ],
)
def test_a_new_configuration_that_does_not_hold_changes_nothing(
    folder: Path, text: str, named: str
) -> None:
    (folder / "live.toml").write_text(CONFIG, "utf-8")
    asked = [
        {"prompt": prompt(40, seed=i), "tokens": 6, "policy": "both", "at": 8 * i} for i in range(2)
    ]
    (came,) = run(folder, asked, config="live.toml", reload=(4, [text]))["phases"]
    (plain,) = run(folder, asked)["phases"]
    assert named in came[-1]["reload"]
    assert [own["tokens"] for own in came[:2]] == [own["tokens"] for own in plain]
