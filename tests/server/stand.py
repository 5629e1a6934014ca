"""A real service on a tiny model, with an engine that tests can stall and break."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guard.artifact import Artifact, ArtifactMeta
from guard.audit import AuditLog
from guard.config.schema import Config, load_config
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.services import build
from server.services.text import BatchedTextService
from steering.engines.transformers.engine import RowToken, TransformersEngine
from steering.fingerprint import fingerprint
from tests.guard.toy_images import save_toy

LAYERS, WIDTH = 4, 32
ALWAYS, NEVER = -1e9, 1e9
NAN_LETTER = "~"
"""Its embedding is NaN: a prompt that holds it has NaN in all activations from there on."""

SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character, and a few of two."""
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


def save_model(folder: Path, *, seed: int = 0) -> LlamaForCausalLM:
    """Write a random model of 4 layers and its tokenizer."""
    words = tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            # wide enough that greedy answers wander instead of repeating one token
            initializer_range=0.3,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[words.convert_tokens_to_ids(NAN_LETTER)] = torch.nan
        # nor does any answer hold it, nor a special token: answers are as long as asked for
        for name in (NAN_LETTER, *SPECIALS):
            model.lm_head.weight[words.convert_tokens_to_ids(name)] = 0.0
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


def meta(model_fingerprint: str, **settings: Any) -> ArtifactMeta:
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


def tensors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "gates": rng.normal(size=(1, WIDTH)).astype("f4"),
        "directions": 20 * rng.normal(size=(1, WIDTH)).astype("f4"),
    }


def save_nan_artifact(path: Path, model_fingerprint: str) -> None:
    """An artifact with a NaN in it and a hash that fits: `Artifact` itself would not write it."""
    spoilt = tensors()
    spoilt["gates"][0, 3] = np.nan
    digest = hashlib.sha256()
    for name in sorted(spoilt):
        digest.update(json.dumps([name, list(spoilt[name].shape)]).encode())
        digest.update(spoilt[name].tobytes())
    held = meta(model_fingerprint).model_copy(update={"tensors_sha256": digest.hexdigest()})
    path.write_bytes(save(spoilt, {"guard": held.canonical_json()}))


class Engine(TransformersEngine):
    """Steps only while `go` is set, each `pace_s` late.

    A fault put into `faults` is raised by the next step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.go = threading.Event()
        self.go.set()
        self.stalled = threading.Event()
        self.faults: list[Exception] = []
        self.reset_fault: Exception | None = None
        self.steps = 0
        self.pace_s = 0.0
        super().__init__(*args, **kwargs)

    def prefill(self, starts: Any) -> list[RowToken]:
        self._pause()
        return super().prefill(starts)

    def decode(self) -> list[RowToken]:
        self._pause()
        return super().decode()

    def reset(self) -> None:
        if self.reset_fault is not None:
            raise self.reset_fault
        super().reset()

    def weights(self) -> str:
        """SHA-256 over every parameter and buffer."""
        digest = hashlib.sha256()
        for name, value in sorted(self._model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def hooks(self) -> int:
        return sum(len(module._forward_hooks) for module in self._model.modules())

    def _pause(self) -> None:
        self.steps += 1
        time.sleep(self.pace_s)
        if not self.go.is_set():
            self.stalled.set()
            assert self.go.wait(20)
        if self.faults:
            raise self.faults.pop()


@dataclass
class Stand:
    """A service as `guard serve` builds it, and what it has recorded."""

    folder: Path
    config: Config
    service: BatchedTextService
    engine: Engine
    metrics: Metrics
    verdicts: list[Any] = field(default_factory=list)

    def audit(self) -> list[dict[str, Any]]:
        text = (self.folder / "audit.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@dataclass(frozen=True)
class Late:
    """A prompt on whose greedy answer `recheck` makes a guard fire at generated token `at`."""

    prompt: str
    at: int
    recheck: float


def find_late(model: LlamaForCausalLM, gates: Any) -> Late:
    """Read the gate of each generated token, without any of the code under test."""
    words = tokenizer()
    for start in "abcdefgh":
        prompt = f"{start} tale"
        ids = words(f"<|user|>{prompt}<|assistant|>", return_tensors="pt").input_ids
        length = ids.shape[1]
        with torch.inference_mode():
            for _ in range(12):
                token = model(ids).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, token], 1)
            states = model(ids, output_hidden_states=True).hidden_states[2][0]
        scores = states @ torch.tensor(gates[0])
        seen = scores[1:length].max()  # the first token is not sensed
        for at in range(1, 12):
            here = scores[length + at - 1]
            if at >= 4 and here > seen + 0.2:
                return Late(prompt, at, float(seen + here) / 2)
            seen = torch.maximum(seen, here)
    raise AssertionError("no answer of this model rises late: change the seed")


class Workshop:
    """A folder with a model and artifacts, from which stands are put up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = save_model(folder / "model")
        self.fingerprint = fingerprint(model)
        self.late = find_late(model, tensors()["gates"])
        self._artifact("always", threshold=ALWAYS)
        self._artifact("never", threshold=NEVER)
        self._artifact("late", threshold=NEVER, recheck=self.late.recheck)
        self._artifact("watchful", threshold=NEVER, recheck=NEVER)
        self._artifact("other", fitted_on="0" * 64)
        save_toy(folder / "drawn.safetensors")

    def _artifact(self, name: str, *, fitted_on: str = "", **settings: Any) -> None:
        made = Artifact(meta(fitted_on or self.fingerprint, **settings), tensors())
        made.save(self.folder / f"{name}.safetensors")

    def copy(self, target: Path) -> Path:
        """The artifacts and a configuration in a folder of the test's own."""
        for path in self.folder.glob("*.safetensors"):
            shutil.copy(path, target)
        return target

    def write_config(self, folder: Path, **server: Any) -> Path:
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
        path = folder / "config.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    @contextmanager
    def stand(self, folder: Path, config: Config | None = None, **server: Any) -> Iterator[Stand]:
        """A running service; `config` None writes one, with `server` in its `[server]`."""
        if config is None:
            config = load_config(self.write_config(self.copy(folder), **server))
        engines: list[Engine] = []

        def engine(*args: Any, **kwargs: Any) -> Engine:
            engines.append(Engine(*args, **kwargs))
            return engines[0]

        metrics = Metrics()
        verdicts: list[Any] = []
        assert config.server.audit_log is not None
        with AuditLog(config.server.audit_log) as audit:
            recorder = Recorder(metrics.verdicts, audit)

            def record(request: Any, verdict: Any) -> None:
                recorder(request, verdict)
                verdicts.append(verdict)

            real = build.TransformersEngine
            build.TransformersEngine = engine  # type: ignore[assignment,misc]
            try:
                (service,) = build.build_services(config, record).values()
            finally:
                build.TransformersEngine = real  # type: ignore[misc]
            assert isinstance(service, BatchedTextService)
            try:
                yield Stand(folder, config, service, engines[0], metrics, verdicts)
            finally:
                engines[0].go.set()
                service.close()
