"""Every way to call a language model inside `guard.attached`: guarded, or refused by that call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import guard
from guard.errors import GuardFailed
from guard.verdict import Verdict
from tests.guard.attach.language import answers, language_config
from tests.steering.tiny import prompt, tiny_model

RECHECK = 36.0
"""A threshold that some answers of the tiny model cross, at different tokens."""


def _guarded(model: Any, config: Any, policy: str, **arguments: Any) -> tuple[Any, list[Any]]:
    """Answers, and what each verdict says of the guard: score, position and outcome."""
    with guard.attached(model, policy, config=config) as handle:
        tokens = answers(model, **arguments)
        return tokens, [_facts(verdict) for verdict in handle.verdicts()]


def _facts(verdict: Verdict) -> tuple[Any, ...]:
    (reading,) = verdict.guards
    return pytest.approx(reading.score, abs=1e-3), reading.position, verdict.outcome


@pytest.mark.parametrize("policy", ["loud", "silent"])
@pytest.mark.parametrize("recheck", [None, RECHECK])
def test_without_a_cache_answers_and_verdicts_are_those_with_one(
    tmp_path: Path, policy: str, recheck: float | None
) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, recheck=recheck)
    cached = _guarded(model, config, policy)
    assert _guarded(model, config, policy, use_cache=False) == cached
    if recheck is not None and policy == "silent":
        positions = [position for _, position, _ in cached[1]]
        assert any(position not in (None, 0) for position in positions), "nothing fired on the way"


def test_a_silent_guard_without_a_cache_gives_the_bare_answer(tmp_path: Path) -> None:
    model = tiny_model()
    bare = answers(model, use_cache=False)
    tokens, facts = _guarded(model, language_config(tmp_path, model), "silent", use_cache=False)
    assert tokens == bare
    assert [outcome for _, _, outcome in facts] == ["pass", "pass"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_loop_of_the_callers_own_is_guarded_as_generate_is(
    tmp_path: Path, use_cache: bool
) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, recheck=RECHECK)
    ids = torch.tensor([prompt(9, 1)])
    with guard.attached(model, "silent", config=config) as handle:
        expected = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
        (verdict,) = handle.verdicts()
        cache, whole = None, ids
        with torch.no_grad():
            for _ in range(8):
                fresh = whole if cache is None else whole[:, -1:]
                output = model(fresh, past_key_values=cache, use_cache=use_cache)
                cache = output.past_key_values if use_cache else None
                whole = torch.cat([whole, output.logits[:, -1:].argmax(-1)], 1)
        (own,) = handle.verdicts()
    assert whole.tolist() == expected.tolist()
    assert _facts(own) == _facts(verdict)


@pytest.mark.parametrize(
    "arguments",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"past_key_values": DynamicCache},
        {"num_return_sequences": 1},
        {"return_dict_in_generate": False, "output_hidden_states": True},
    ],
)
def test_other_caches_and_outputs_are_guarded_as_well(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, recheck=RECHECK)
    for policy in ("loud", "silent"):
        given = {name: value() if callable(value) else value for name, value in arguments.items()}
        assert _guarded(model, config, policy, **given) == _guarded(model, config, policy)


def test_a_static_cache_of_the_callers_is_guarded(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    cache = StaticCache(config=model.config, max_cache_len=32)
    assert _guarded(model, config, "loud", past_key_values=cache) == _guarded(model, config, "loud")


def test_several_answers_to_a_prompt_are_as_many_rows(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    with guard.attached(model, "loud", config=config) as handle:
        ids = torch.tensor([prompt(9, 1)])
        model.generate(input_ids=ids, num_return_sequences=3, do_sample=True, max_new_tokens=4)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered"] * 3


def test_embeddings_are_guarded_as_the_ids_are(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    ids = torch.tensor([prompt(9, 1)])
    with guard.attached(model, "loud", config=config) as handle:
        expected = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[:, 9:]
        (verdict,) = handle.verdicts()
        states = model.get_input_embeddings()(ids)
        tokens = model.generate(inputs_embeds=states, max_new_tokens=6, do_sample=False)
        (of_states,) = handle.verdicts()
    assert tokens.tolist() == expected.tolist()
    assert _facts(of_states) == _facts(verdict)


UNFOLLOWED: dict[str, Callable[[Any], Any]] = {
    "num_beams": lambda model: answers(model, num_beams=2),
    "prompt_lookup": lambda model: answers(model, prompt_lookup_num_tokens=3),
    "assistant": lambda model: answers(model, assistant_model=tiny_model(seed=1)),
    "early exit": lambda model: answers(model, assistant_early_exit=2),
    "guidance": lambda model: answers(model, guidance_scale=1.5),
    "contrastive": lambda model: answers(model, penalty_alpha=0.6, top_k=4),
    "custom": lambda model: answers(model, custom_generate=lambda *_args, **_more: None),
    "chunks": lambda model: answers(model, prefill_chunk_size=8),
    "batching": lambda model: model.generate_batch([[1, 2, 3]]),
    "filled cache": lambda model: answers(model, past_key_values=_filled(model)),
    "forward": lambda model: model.forward(torch.tensor([[5, 6]])),
    "decoder": lambda model: model.model(torch.tensor([[5, 6]])),
    "chunked by hand": lambda model: model(
        torch.tensor([[7, 8]]), past_key_values=model(torch.tensor([[5, 6]])).past_key_values
    ),
    "another cache": lambda model: model(
        torch.tensor([[7]]), past_key_values=_filled(tiny_model())
    ),
    "packed": lambda model: model(
        torch.tensor([[5, 6, 7]]), cu_seq_lens_q=torch.tensor([0, 1, 3], dtype=torch.int32)
    ),
    "positional mask": lambda model: model(torch.tensor([[5, 0]]), torch.tensor([[1, 0]])),
}


def _filled(model: Any) -> Any:
    cache = DynamicCache(config=model.config)
    layers = [layer for layer in model.model.layers]
    for number in range(len(layers)):
        cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), number)
    return cache


@pytest.mark.parametrize("way", UNFOLLOWED)
def test_what_cannot_be_followed_is_refused_by_the_call_itself(tmp_path: Path, way: str) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    with guard.attached(model, "silent", config=config) as handle, torch.no_grad():
        with pytest.raises(GuardFailed, match=r"cannot be guarded|pad on the left|outside of"):
            UNFOLLOWED[way](model)
        # the next call is guarded
        answers(model)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass", "pass"]


@pytest.mark.parametrize("way", ["num_beams", "forward"])
def test_under_a_policy_that_fails_open_the_verdict_says_so(tmp_path: Path, way: str) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, on_error="open")
    with guard.attached(model, "loud", config=config) as handle:
        UNFOLLOWED[way](model)
        verdicts = handle.verdicts()
        assert {verdict.outcome for verdict in verdicts} <= {"error"}
        if way == "num_beams":
            assert len(verdicts) == 4
            assert "num_beams=2 cannot be guarded" in str(verdicts[0].guards[0].error)
        answers(model)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered", "steered"]


def test_a_call_that_ends_half_way_does_not_disturb_the_next_one(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    expected = _guarded(model, config, "loud")
    broken = model.model.layers[2].register_forward_pre_hook(_fail_once())
    with guard.attached(model, "loud", config=config) as handle:
        with pytest.raises(ZeroDivisionError):
            answers(model)
        broken.remove()
        assert (answers(model), list(map(_facts, handle.verdicts()))) == expected


def _fail_once() -> Callable[..., None]:
    def hook(*_args: Any) -> None:
        raise ZeroDivisionError

    return hook
