"""A text service on a tiny model, with an engine that tests can pause and break."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guard.artifact import Artifact, ArtifactMeta
from guard.config.schema import Config, load_config
from server.services import build
from server.services.text import BatchedTextService
from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.row_tokens import RowToken
from steering.fingerprint import fingerprint
from tests.guard.toy_images import save_toy
from tests.server.running_service import RunningService, StepControl, recording

LAYERS, WIDTH = 4, 32
ALWAYS, NEVER = -1e9, 1e9
NAN_LETTER = "~"
"""Its embedding is NaN: a prompt with it has NaN in all activations from there on."""

SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable character, and a few tokens of two."""
    pairs = [("t", "h"), ("a", "n"), ("o", "u")]
    names = [*SPECIALS, *LETTERS, *("".join(pair) for pair in pairs)]
    bpe = models.BPE({name: i for i, name in enumerate(names)}, pairs, unk_token="<unk>")
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIALS[3:],
        chat_template=TEMPLATE,
    )


def save_model(
    folder: Path, *, seed: int = 0, encoder: PreTrainedTokenizerFast | None = None
) -> LlamaForCausalLM:
    """Write a random model of 4 layers and its tokenizer."""
    encoder = encoder or tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(encoder),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            # large weights: greedy answers do not repeat one token
            initializer_range=0.3,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[encoder.convert_tokens_to_ids(NAN_LETTER)] = torch.nan
        # no answer contains it or a special token: answers have the length that is requested
        for name in (NAN_LETTER, *SPECIALS):
            model.lm_head.weight[encoder.convert_tokens_to_ids(name)] = 0.0
    model.save_pretrained(folder)
    encoder.save_pretrained(folder)
    return model


def steer_meta(model_fingerprint: str, **settings: Any) -> ArtifactMeta:
    return ArtifactMeta.model_validate(
        {
            "method": "steer",
            "concept": "topic/test",
            "created": "2026-01-31",
            "model": {
                "name": "tiny",
                "architecture": "LlamaForCausalLM",
                "fingerprint": model_fingerprint,
                "layers": LAYERS,
                "width": WIDTH,
            },
            "seams": ["hidden"],
            "settings": {
                "sense_layers": [1],
                "act_layers": [2],
                "schedule": [1.0] * 8,
                "pool": 1,
                "rest": 1,
                "threshold": 0.0,
                "strength": 1.0,
                "recheck": None,
            }
            | settings,
        }
    )


def steer_tensors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "gates": rng.normal(size=(1, WIDTH)).astype("f4"),
        "directions": 20 * rng.normal(size=(1, WIDTH)).astype("f4"),
    }


def save_nan_artifact(path: Path, model_fingerprint: str) -> None:
    """An artifact with NaN and valid hashes, which `Artifact` refuses to write."""
    tensors = steer_tensors()
    tensors["gates"][0, 3] = np.nan
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(json.dumps([name, list(tensors[name].shape)]).encode())
        digest.update(tensors[name].tobytes())
    meta = steer_meta(model_fingerprint).model_copy(update={"tensors_sha256": digest.hexdigest()})
    text = meta.canonical_json()
    whole = hashlib.sha256(text.encode()).hexdigest()
    path.write_bytes(save(tensors, {"guard": text, "guard_sha256": whole}))


class PausableEngine(StepControl, TransformersEngine):
    """A TransformersEngine that tests can pause and break; `steps` counts forwards."""

    def prefill(self, starts: Any) -> list[RowToken]:
        self._count_step()
        return super().prefill(starts)

    def read(self, most: int) -> RowToken | None:
        self._count_step()
        return super().read(most)

    def decode(self) -> list[RowToken]:
        self._count_step()
        return super().decode()

    def reset(self) -> None:
        self.check_reset()
        super().reset()

    def weights(self) -> str:
        """SHA-256 over every parameter and buffer."""
        digest = hashlib.sha256()
        for name, value in sorted(self._run._model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def hooks(self) -> int:
        return sum(len(module._forward_hooks) for module in self._run._model.modules())

    def _count_step(self) -> None:
        self.steps += 1
        self.pause()


RunningText = RunningService[BatchedTextService, PausableEngine]


@dataclass(frozen=True)
class LateFiring:
    """A prompt on whose answer a guard with `recheck` fires at generated token `position`."""

    prompt: str
    position: int
    recheck: float


def find_late_firing(
    model: LlamaForCausalLM, gates: Any, encoder: PreTrainedTokenizerFast
) -> LateFiring:
    """Read the gate of each generated token, without any of the code under test."""
    for start in "abcdefgh":
        prompt = f"{start} tale"
        ids = encoder(f"<|user|>{prompt}<|assistant|>", return_tensors="pt").input_ids
        length = ids.shape[1]
        with torch.inference_mode():
            for _ in range(12):
                token = model(ids).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, token], 1)
            states = model(ids, output_hidden_states=True).hidden_states[2][0]
        scores = states @ torch.tensor(gates[0])
        highest = scores[1:length].max()  # the first token is not sensed
        for position in range(1, 12):
            score = scores[length + position - 1]
            if position >= 4 and score > highest + 0.2:
                return LateFiring(prompt, position, float(highest + score) / 2)
            highest = torch.maximum(highest, score)
    raise AssertionError("no answer of this model has a late maximum: change the seed")


class TinyTextModel:
    """A folder with a tiny model and artifacts, from which services are started."""

    def __init__(self, folder: Path, encoder: PreTrainedTokenizerFast | None = None) -> None:
        self.folder = folder
        encoder = encoder or tokenizer()
        model = save_model(folder / "model", encoder=encoder)
        self.fingerprint = fingerprint(model)
        self.late = find_late_firing(model, steer_tensors()["gates"], encoder)
        self._artifact("always", threshold=ALWAYS)
        self._artifact("never", threshold=NEVER)
        self._artifact("late", threshold=NEVER, recheck=self.late.recheck)
        self._artifact("watchful", threshold=NEVER, recheck=NEVER)
        self._artifact("other", fitted_on="0" * 64)
        save_toy(folder / "drawn.safetensors")

    def _artifact(self, name: str, *, fitted_on: str = "", **settings: Any) -> None:
        meta = steer_meta(fitted_on or self.fingerprint, **settings)
        Artifact(meta, steer_tensors()).save(self.folder / f"{name}.safetensors")

    def copy(self, target: Path) -> Path:
        """Copy the artifacts into the test's own folder; returns the folder."""
        for path in self.folder.glob("*.safetensors"):
            shutil.copy(path, target)
        return target

    def write_config(self, folder: Path, **server: Any) -> Path:
        """A configuration with the policies `ACTION-GUARD` for each action and guard; under
        `open-GUARD` errors let a request pass, under `straight-late` answers do not go back."""
        names = ["always", "never", "late", "watchful", "other", "drawn"]
        lines = ["[server]", 'audit_log = "audit.jsonl"']
        lines += [f"{name} = {json.dumps(value)}" for name, value in server.items()]
        lines += ["[[models]]", 'name = "tiny"', f'source = "{self.folder / "model"}"']
        lines += ['device = "cpu"']
        for name in names:
            lines += ["[[guards]]", f'name = "{name}"', f'artifact = "{name}.safetensors"']
            for action in ("steer", "block", "flag", "observe"):
                lines += [f"[policies.{action}-{name}]", f'guards = ["{name}"]']
                lines += [f'action = "{action}"']
            lines += [f"[policies.open-{name}]", f'guards = ["{name}"]', 'on_error = "open"']
        lines += ["[policies.straight-late]", 'guards = ["late"]', "rewind = false"]
        path = folder / "config.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    @contextmanager
    def serve(
        self, folder: Path, config: Config | None = None, **server: Any
    ) -> Iterator[RunningText]:
        """A running service; `config` None writes one, with `server` in its `[server]`."""
        if config is None:
            config = load_config(self.write_config(self.copy(folder), **server))
        with recording(config) as records:
            real = build.TransformersEngine
            build.TransformersEngine = PausableEngine  # type: ignore[misc]
            try:
                (service,) = build.build_services(config, records).values()
            finally:
                build.TransformersEngine = real  # type: ignore[misc]
            assert isinstance(service, BatchedTextService)
            engine = service._engine
            assert isinstance(engine, PausableEngine)
            try:
                yield RunningService(folder, config, service, engine, records)
            finally:
                engine.go.set()
                service.close()
