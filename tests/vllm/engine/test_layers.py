"""Decoder layers in vLLM's models, and the residual stream in what they return."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from steering.engines.errors import Unsupported  # noqa: E402
from steering.engines.vllm.layers import (  # noqa: E402
    decoder,
    decoder_layers,
    has_pending_residual,
    stream_of,
)


class Layers(nn.Module):
    """As vLLM's models have it: layers, and which of them run in this stage."""

    def __init__(self, name: str = "layers", layer: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.start_layer, self.end_layer = 0, 2
        setattr(self, name, nn.ModuleList([layer(), layer()]))


class Causal(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.transformer = inner


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity()])


class Multimodal(nn.Module):
    """With an encoder of images that has layers too, run in stages as well."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.ModuleList([Encoder(), Layers("blocks")])
        self.words = Causal(Layers())

    def get_language_model(self) -> nn.Module:
        return self.words


@pytest.mark.parametrize("name", ["layers", "h", "blocks"])
def test_layers_are_found_by_structure(name: str) -> None:
    inner = Layers(name)
    model = Causal(inner)
    assert decoder(model) is inner
    assert decoder_layers(model) == list(getattr(inner, name))


def test_layers_are_those_of_the_language_model() -> None:
    model = Multimodal()
    assert decoder(model) is model.words.transformer


@pytest.mark.parametrize("model", [Encoder(), nn.ModuleList([Layers(), Layers()]), nn.Linear(1, 1)])
def test_a_model_without_one_list_of_layers_is_refused(model: nn.Module) -> None:
    with pytest.raises(Unsupported, match="are not found"):
        decoder_layers(model)


class LoopCoderDecoderLayer(nn.Identity):
    pass


class Scattered(nn.Identity):
    use_attn_reduce_scatter_for_moe = True


@pytest.mark.parametrize(
    ("layer", "why"), [(LoopCoderDecoderLayer, "more than once"), (Scattered, "over workers")]
)
def test_layers_that_are_not_followed_are_refused(layer: type[nn.Module], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        decoder_layers(Layers(layer=layer))


HIDDEN, RESIDUAL = torch.ones(3, 2), torch.full((3, 2), 2.0)


@pytest.mark.parametrize(
    ("output", "adds_later", "residual"),
    [
        ((HIDDEN, RESIDUAL), True, RESIDUAL),
        ((HIDDEN, RESIDUAL), False, None),
        ((HIDDEN, None), True, None),
        (HIDDEN, True, None),
    ],
)
def test_the_stream_of_a_layer(output: Any, adds_later: bool, residual: Tensor | None) -> None:
    found = stream_of(output, adds_later)
    assert found[0] is HIDDEN and found[1] is residual


@pytest.mark.parametrize(
    "output",
    [
        HIDDEN[None],
        (HIDDEN, RESIDUAL, None),
        (HIDDEN, RESIDUAL[None]),
        (HIDDEN, 1.0),
        (HIDDEN,),
        None,
        {"hidden": HIDDEN},
    ],
)
def test_any_other_output_is_refused(output: Any) -> None:
    with pytest.raises(Unsupported, match="returns neither"):
        stream_of(output, True)


@pytest.mark.parametrize(
    ("kind", "pending"),
    [
        ("llama.LlamaDecoderLayer", True),
        ("llama4.Llama4DecoderLayer", True),
        ("mistral.MistralDecoderLayer", True),
        ("mixtral.MixtralDecoderLayer", True),
        ("qwen2.Qwen2DecoderLayer", True),
        ("qwen3.Qwen3DecoderLayer", True),
        ("qwen3_moe.Qwen3MoeDecoderLayer", True),
        ("qwen3_next.Qwen3NextDecoderLayer", True),
        ("gemma2.Gemma2DecoderLayer", True),
        ("gemma3.Gemma3DecoderLayer", True),
        ("deepseek_v2.DeepseekV2DecoderLayer", True),
        ("gpt_oss.TransformerBlock", True),
        ("glm4_moe.Glm4MoeDecoderLayer", True),
        ("nemotron_h.NemotronHMambaDecoderLayer", True),
        ("lfm2.Lfm2AttentionDecoderLayer", True),
        ("commandr.CohereDecoderLayer", False),
        ("stablelm.StablelmDecoderLayer", False),
        ("exaone4.Exaone4DecoderLayer", False),
        ("phimoe.PhiMoEDecoderLayer", False),
        ("gemma4.Gemma4DecoderLayer", False),
        ("granite.GraniteDecoderLayer", False),
        ("granitemoehybrid.GraniteMoeHybridMambaDecoderLayer", False),
        ("falcon.FalconDecoderLayer", False),
        ("gpt2.GPT2Block", False),
    ],
)
def test_layers_of_vllm_whose_sum_is_taken_by_the_next_one(kind: str, pending: bool) -> None:
    module, name = kind.split(".")
    layer = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)
    assert has_pending_residual(object.__new__(layer)) == pending
