"""Policies and keys of the vLLM plugin; the rest is tested with vLLM in `tests/vllm`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from guard.config.schema import load_config
from guard.errors import ConfigError, GuardFailed
from guard.plans.language import ServedModel
from guard.plans.revision import Revision
from server.vllm.policies import Policies, require_guarded, salted
from tests.vllm.checkpoint import WIDTH, artifact

FITTED = "f" * 64
SERVED = ServedModel(fingerprint=FITTED, depth=4, width=WIDTH, device="cpu")
CONFIG = """
[server]
default_policy = "{default}"
[[guards]]
name = "hp"
artifact = "hp.safetensors"
[[guards]]
name = "med"
artifact = "med.safetensors"
[policies.hp]
guards = ["hp"]
[policies.same]
guards = ["hp"]
[policies.watch]
guards = ["hp"]
action = "observe"
[policies.both]
guards = ["hp", "med"]
action = "observe"
"""


def save(folder: Path, name: str, seed: int, fitted_on: str = FITTED) -> None:
    rng = np.random.default_rng(seed)
    settings = {"sense_layers": [0, 1], "act_layers": [2], "schedule": [1.0], "pool": 3}
    settings |= {"threshold": 1.0, "strength": 2.0, "rest": 1, "recheck": None}
    gates, direction = (rng.normal(size=(n, WIDTH)).astype("f4") for n in (2, 1))
    artifact(fitted_on, settings, gates, direction).save(folder / f"{name}.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    save(tmp_path, "hp", 0)
    save(tmp_path, "med", 1)
    yield tmp_path


def revision(folder: Path, default: str = "none", extra: str = "", number: int = 0) -> Revision:
    (folder / "config.toml").write_text(CONFIG.format(default=default) + extra, "utf-8")
    return Revision(load_config(folder / "config.toml"), SERVED, "tiny", number)


def policies(
    folder: Path, default: str = "none", extra: str = "", *, keyed: bool = True
) -> Policies:
    revised = revision(folder, default, extra)
    path = folder / "config.toml"
    return Policies(path, load_config(path), revised, keyed=keyed)


def test_a_request_has_the_policy_that_it_names_or_the_default(folder: Path) -> None:
    available = policies(folder, "watch")
    assert (
        available.entry_for(None) is available.entry_for({"other": 1}) is available.entries["watch"]
    )
    assert available.entry_for({"guard_policy": "hp"}) is available.entries["hp"]
    deep: object = "hp"
    for _ in range(500):
        deep = [deep]
    for unknown in ("ghost", "", 1, None, ["hp"], {"hp": 1}, "hp" * 10**6, deep, 2**4000, b"hp"):
        with pytest.raises(ValueError, match="there is no policy") as refused:
            available.entry_for({"guard_policy": unknown})
        assert len(str(refused.value)) < 200


def test_pooling_is_refused_where_guards_would_not_follow(folder: Path) -> None:
    extra = '[policies.lax]\nguards = ["hp"]\non_error = "open"\n'
    entries = policies(folder, extra=extra).entries
    with pytest.raises(ValueError, match="pooling"):
        require_guarded(entries["hp"], pools=True)
    for name in ("none", "lax"):
        require_guarded(entries[name], pools=True)
    require_guarded(entries["hp"], pools=False)


def test_with_keys_only_policies_that_all_allow_are_available(folder: Path) -> None:
    key = '[[keys]]\nhash = "sha256:{}"\ntenant = "t"\npolicies = [{}]\n'
    keys = key.format("a" * 64, '"hp", "watch"') + key.format("b" * 64, '"watch"')
    assert set(policies(folder, "hp", keys).entries) == {"hp", "watch"}
    assert set(policies(folder, "watch", keys).entries) == {"watch"}
    # a front end that knows the key of each request decides itself
    assert "both" in policies(folder, "watch", keys, keyed=False).entries


def test_a_policy_that_cannot_be_applied_keeps_the_engine_from_starting(folder: Path) -> None:
    save(folder, "med", 1, fitted_on="e" * 64)
    with pytest.raises(GuardFailed, match="'both' cannot be applied: med: .*fitted on"):
        policies(folder)


def test_a_default_without_a_guard_for_text_is_refused(folder: Path) -> None:
    image_guard = artifact(FITTED, {}, np.ones((2, 8), "f4"), np.ones((1, 8), "f4"))
    meta = image_guard.meta.model_copy(update={"method": "cgce", "seams": ("embedding",)})
    type(image_guard)(meta, image_guard.tensors).save(folder / "drawn.safetensors")
    extra = '[[guards]]\nname = "drawn"\nartifact = "drawn.safetensors"\n'
    extra += '[policies.drawn]\nguards = ["drawn"]\n'
    assert "drawn" not in policies(folder, extra=extra).entries
    with pytest.raises(ConfigError, match="'drawn' has no guard for a language model"):
        policies(folder, "drawn", extra)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ('[live_policies]\ndatabase = "versions.sqlite"\n', "live_policies"),
        ('[policies.hp.shadow]\nguards = ["med"]\n', "policies.hp.shadow"),
    ],
)
def test_what_other_servers_alone_do_with_policies_is_refused(
    extra: str, named: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: is for `guard serve`"):
        policies(folder, extra=extra)


SCREENED = """
[[patterns]]
name = "secrets"
source = "secrets"
[policies.read]
guards = ["hp", "secrets"]
"""


def test_a_policy_that_screens_text_is_for_requests_that_were_screened(folder: Path) -> None:
    available = policies(folder, "read", SCREENED)
    assert available.screens is not None and available.screens.plans["read"].screens
    entry = available.entry_for(None)
    with pytest.raises(ValueError, match="'read' has screens"):
        require_guarded(entry, pools=False)
    require_guarded(entry, pools=False, is_screened=True)
    # `guard serve` runs the screens itself
    assert policies(folder, "read", SCREENED, keyed=False).screens is None


def test_screens_that_send_requests_elsewhere_are_refused(folder: Path) -> None:
    upstream = '[[upstreams]]\nname = "other"\nurl = "http://127.0.0.1:1"\n'
    routes = 'action = "route"\nscreen = { upstream = "other" }\n'
    with pytest.raises(ConfigError, match="'read' routes to the upstream 'other'"):
        policies(folder, "hp", upstream + SCREENED.replace('"hp", ', "") + routes)


def test_earlier_screens_close_after_their_last_request(folder: Path) -> None:
    screens = policies(folder, "read", SCREENED).screens
    assert screens is not None
    with screens.screener() as first:
        screens.retire()
        with screens.screener() as second:
            assert second is first
        assert not first._encoding._pool._shutdown
    assert first._encoding._pool._shutdown


def test_plans_with_different_states_have_different_salts(folder: Path) -> None:
    entries = revision(folder).entries
    assert entries["none"].salt is None
    assert entries["hp"].salt == entries["same"].salt
    assert len({entries[name].salt for name in ("none", "hp", "watch", "both")}) == 4
    save(folder, "hp", 2)
    assert revision(folder).entries["hp"].salt != entries["hp"].salt


def test_keys_identify_a_policy_of_one_revision(folder: Path) -> None:
    first, again = revision(folder), revision(folder)
    keys = {name: entry.key for name, entry in first.entries.items()}
    assert len({*keys.values()}) == len(keys)
    assert keys == {name: entry.key for name, entry in again.entries.items()}
    following = revision(folder, number=1)
    assert not {*keys.values()} & {entry.key for entry in following.entries.values()}
    # what was cached serves on
    assert following.entries["hp"].salt == first.entries["hp"].salt


def test_a_clients_salt_never_equals_that_of_a_plan() -> None:
    assert salted(None, None) is None
    plan = salted(None, "plan")
    pairs = [(plan, None), ("", None), ("mine", None), ("mine", "plan")]
    salts = [plan, *(salted(*pair) for pair in pairs)]
    assert None not in salts and len(set(salts)) == len(salts)


def test_without_a_configuration_nothing_is_imported() -> None:
    code = (
        "import sys; from server.vllm import register; register(); "
        "sys.exit(any(name.split('.')[0] in ('vllm', 'torch') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, check=False)
    assert done.returncode == 0
