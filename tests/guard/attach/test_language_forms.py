"""Models in other forms than plain modules: compiled, traced, wrapped, offloaded, replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import guard
from guard.errors import GuardFailed, ModelError
from steering.fingerprint import fingerprint
from tests.guard.attach.language import answers, language_config
from tests.steering.tiny import prompt, tiny_model


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compile_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def _compile_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def _compile_decoder(model: Any) -> Any:
    model.model.forward = torch.compile(model.model.forward, backend="eager")
    return model


def _compile_layers(model: Any) -> Any:
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def _wrap_layers(model: Any) -> Any:
    layers = [torch.compile(layer, backend="eager") for layer in model.model.layers]
    model.model.layers = nn.ModuleList(layers)
    return model


def _wrap(model: Any) -> Any:
    return torch.compile(model, backend="eager")


COMPILED: list[Callable[[Any], Any]] = [
    _compile_forward,
    _compile_in_place,
    _compile_decoder,
    _compile_layers,
    _wrap_layers,
    _wrap,
]


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("has_run", [True, False])
def test_a_compiled_model_is_guarded_as_the_plain_one(
    tmp_path: Path, compiled: Callable[[Any], Any], has_run: bool
) -> None:
    plain = tiny_model()
    config = language_config(tmp_path, plain)
    with guard.attached(plain, "loud", config=config) as handle:
        expected = answers(plain)
        scores = [verdict.guards[0].score for verdict in handle.verdicts()]
    bare = answers(plain)
    model = compiled(tiny_model())
    if has_run:
        assert answers(model) == bare
    with guard.attached(model, "loud", config=config) as handle:
        assert answers(model) == expected
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered", "steered"]
        assert [v.guards[0].score for v in handle.verdicts()] == pytest.approx(scores)
    # compiled code is in use again
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert answers(model) == bare


def test_a_compiled_wrapper_that_is_called_itself_is_guarded(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    compiled = torch.compile(model, backend="eager")
    ids = torch.tensor([prompt(9, 1)])
    with torch.no_grad():
        bare = compiled(ids).logits
        with guard.attached(model, "loud", config=config) as handle:
            assert not torch.equal(compiled(ids).logits, bare)
            assert [verdict.outcome for verdict in handle.verdicts()] == ["steered"]


def test_what_is_compiled_inside_the_context_is_guarded(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    with guard.attached(model, "loud", config=config) as handle:
        expected = answers(model)
        model.compile(backend="eager")
        assert answers(model) == expected
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered", "steered"]


def test_contexts_that_end_in_another_order_leave_the_compiler_as_it_was(tmp_path: Path) -> None:
    models = [tiny_model(), tiny_model()]
    config = language_config(tmp_path, models[0])
    contexts = [guard.attached(model, "silent", config=config) for model in models]
    for context in contexts:
        context.__enter__()
    contexts[0].__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    contexts[1].__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance.stance == "default"


def _captured(model: Any) -> None:
    """As a captured graph: the forward runs, and calls no layer's hooks."""
    forward = model.forward

    def replay(*args: Any, **kwargs: Any) -> Any:
        hooks = [(layer, dict(layer._forward_hooks)) for layer in model.model.layers]
        for layer, _ in hooks:
            layer._forward_hooks.clear()
        try:
            return forward(*args, **kwargs)
        finally:
            for layer, kept in hooks:
                layer._forward_hooks.update(kept)

    model.forward = replay


def _skips_a_layer(model: Any) -> None:
    layers = model.model.layers
    model.model.forward = _with_layers(model.model, [layers[0], layers[2], layers[3]])


def _repeats_a_layer(model: Any) -> None:
    layers = model.model.layers
    model.model.forward = _with_layers(model.model, [layers[0], layers[1], layers[1], layers[2]])


def _with_layers(decoder: Any, chosen: list[Any]) -> Any:
    forward, layers = decoder.forward, decoder.layers

    def changed(*args: Any, **kwargs: Any) -> Any:
        decoder.layers = nn.ModuleList(chosen)
        try:
            return forward(*args, **kwargs)
        finally:
            decoder.layers = layers

    return changed


@pytest.mark.parametrize("replace", [_captured, _skips_a_layer, _repeats_a_layer])
@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_forward_that_does_not_pass_every_hook_once_is_a_fault(
    tmp_path: Path, replace: Callable[[Any], None], on_error: str
) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, on_error=on_error)
    with guard.attached(model, "loud", config=config) as handle:
        replace(model)
        ids = torch.tensor([prompt(9, 1)])
        if on_error == "closed":
            with pytest.raises(GuardFailed, match="has not passed the hooks"):
                model(ids, use_cache=False)
        else:
            model(ids, use_cache=False)
            (verdict,) = handle.verdicts()
            assert verdict.outcome == "error"
            assert "has not passed the hooks" in str(verdict.guards[0].error)


class _Wrapper(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module, self.config = model, model.config


def _scripted(_model: Any) -> Any:
    return torch.jit.script(nn.Linear(2, 2))


@pytest.mark.parametrize("wrap", [nn.DataParallel, _Wrapper, _scripted])
def test_a_wrapper_or_another_module_is_refused_in_a_sentence(
    tmp_path: Path, wrap: Callable[[Any], Any]
) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    with pytest.raises(ModelError, match=r"attach guards to the model itself|decoder layers"):
        guard.attached(wrap(model), "loud", config=config).__enter__()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("place", ["disk", "cpu"])
def test_an_offloaded_model_is_guarded_as_the_one_in_memory(
    tmp_path: Path, tied: bool, place: str
) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model(tie_word_embeddings=tied)
    config = language_config(tmp_path, model)
    with guard.attached(model, "loud", config=config):
        expected = answers(model)
    if place == "disk":
        model.save_pretrained(tmp_path / "model")
        away = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map={"": "disk"}, offload_folder=str(tmp_path / "away")
        )
    else:
        away = accelerate.cpu_offload(tiny_model(tie_word_embeddings=tied), "cpu")
    assert all(parameter.is_meta for parameter in away.parameters())
    assert fingerprint(away) == fingerprint(model)
    with guard.attached(away, "loud", config=config) as handle:
        assert answers(away) == expected
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered", "steered"]


def test_weights_that_are_nowhere_are_refused_in_a_sentence(tmp_path: Path) -> None:
    config = language_config(tmp_path, tiny_model())
    with pytest.raises(ModelError, match=r"weights 'lm_head.weight' .* cannot be read"):
        guard.attached(tiny_model().to("meta"), "loud", config=config).__enter__()


def test_quantised_weights_are_those_of_another_model(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    for layer in model.model.layers:
        weight = layer.mlp.down_proj.weight
        whole = (weight / weight.abs().max() * 127).round().to(torch.int8)
        layer.mlp.down_proj.weight = nn.Parameter(whole, requires_grad=False)
    with pytest.raises(GuardFailed, match="fit it on that model"):
        guard.attached(model, "loud", config=config).__enter__()
