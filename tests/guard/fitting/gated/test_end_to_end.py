"""From files to artifacts and policies, as a user goes it; the model is tiny.

Random weights know nothing: this shows that the parts fit together, not that a guard is any good.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from guard.artifact import Artifact
from guard.cli import app
from guard.errors import DataError, FingerprintError
from guard.fitting.gated.imported import OUTSIDE, LanguageImport, import_overlay
from guard.fitting.gated.token_gate import TokenGate
from guard.models.chat import TransformersChat
from guard.reporting.progress import Lines
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer, write_topic
from tests.steering.adapters import merged, save_adapter
from tests.steering.tiny import LAYERS, WIDTH, tiny_model

RATES = ("--fpr", "0.4", "--near-fpr", "0.4")
PROMPTS = ["w5 w9 w33", "w50 w7 w3 w80"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and the two files. Whatever the model says is a leak."""
    base = tmp_path_factory.mktemp("gated")
    save_tokenizer(base / "model")
    tiny_model().save_pretrained(base / "model")
    write_topic(base / "data")
    return base


@pytest.fixture(scope="module")
def chat(folder: Path) -> TransformersChat:
    return TransformersChat.load(str(folder / "model"), device="cpu")


def fit(folder: Path, method: str, *more: object) -> Result:
    options = {
        "--model": folder / "model",
        "--concept": "topic/t",
        "--forget": folder / "data" / "forget.jsonl",
        "--retain": folder / "data" / "retain.jsonl",
        "--out": folder / f"{method}.safetensors",
    }
    flat = [str(part) for pair in options.items() for part in pair]
    return CliRunner().invoke(app, ["fit", method, *flat, *RATES, *map(str, more)])


@pytest.fixture(scope="module")
def ablation(folder: Path) -> Artifact:
    done = fit(folder, "ablation", "--rank", 2)
    assert done.exit_code == 0, done.output
    return Artifact.load(folder / "ablation.safetensors")


def test_an_ablation_is_fitted_with_a_gate_of_its_own(folder: Path, ablation: Artifact) -> None:
    settings = ablation.meta.settings
    assert ablation.meta.method == "ablation" and ablation.meta.seams == ("hidden",)
    assert ablation.tensors["directions"].shape == (len(settings["act_layers"]), 2, WIDTH)
    assert max(settings["sense_layers"]) <= min(settings["act_layers"])
    report = json.loads((folder / "ablation.report.json").read_text())
    assert report["judgement"] and sum(trial["chosen"] for trial in report["trials"]) == 1
    assert (folder / "ablation.report.html").stat().st_size > 1000


def test_the_model_of_a_fit_may_be_smaller(folder: Path, ablation: Artifact) -> None:
    done = fit(folder, "ablation", "--rank", 2, "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    smaller = Artifact.load(folder / "ablation.safetensors")
    ablation.save(folder / "ablation.safetensors")
    assert smaller.meta.model == ablation.meta.model
    near = torch.from_numpy(smaller.tensors["gates"]), torch.from_numpy(ablation.tensors["gates"])
    assert not torch.equal(*near) and torch.cosine_similarity(*near).min() > 0.9


@pytest.mark.parametrize("taken", [False, True])
def test_a_signature_decides_or_takes_over_a_gate(
    folder: Path, ablation: Artifact, taken: bool
) -> None:
    more = ("--gate", folder / "ablation.safetensors") if taken else ()
    done = fit(folder, "kif", "--json", *more)
    assert done.exit_code == 0, done.output
    artifact = Artifact.load(folder / "kif.safetensors")
    settings = artifact.meta.settings
    same = bool((artifact.tensors["gates"] == ablation.tensors["gates"]).all())
    assert same == taken and (settings["threshold"] == ablation.meta.settings["threshold"]) == taken
    assert (settings["bias"] == 0.0) == taken
    assert len(artifact.meta.calibration["cohens_d"]) == LAYERS
    method_named("kif").stacked([FittedGuard("g", artifact.tensors, settings)])
    if taken:
        assert artifact.meta.calibration["gate_of"] == ablation.digest


def test_a_score_of_a_signature_is_in_deviations_of_retain_prompts(
    folder: Path, chat: TransformersChat
) -> None:
    assert fit(folder, "kif").exit_code == 0
    artifact = Artifact.load(folder / "kif.safetensors")
    rows = [json.loads(line) for line in (folder / "data" / "retain.jsonl").open()]
    prompts = [row["prompt"] for row in rows if row["split"] == "validation"]
    fitted = FittedGuard("g", artifact.tensors, artifact.meta.settings)
    replies = chat.answer(
        prompts,
        max_tokens=1,
        what="scores",
        progress=Lines().begin,
        bank=HiddenBank([method_named("kif").stacked([fitted])]),
        guards=[RowGuard("g", 1e6, 1.0)],
    )
    scores = torch.tensor([reply.readings["g"].score for reply in replies])
    # the statistic of the runtime is cut off at zero, where the score of a token is none
    kept = float(scores[scores > 0].max())
    threshold = float(artifact.meta.settings["threshold"])  # type: ignore[arg-type]
    assert 0.0 < kept < 6.0 and threshold < 6.0


def test_a_gate_of_another_model_or_method_is_refused(folder: Path, ablation: Artifact) -> None:
    other = TransformersChat(tiny_model(seed=3), None_tokenizer(), name="other")
    with pytest.raises(FingerprintError, match="fitted on"):
        TokenGate.of_artifact(ablation, other)
    done = fit(folder, "kif", "--gate", folder / "kif.safetensors")
    assert done.exit_code == 1 and "has no gate that another can take" in done.output
    assert done.output.count("\n") == 1


def None_tokenizer() -> Any:
    class Tokenizer:
        chat_template = ""
        eos_token_id = None
        all_special_tokens: list[str] = []

        def __getattr__(self, name: str) -> Any:
            return None

    return Tokenizer()


def take_in(chat: TransformersChat, source: Path, gate: TokenGate, **how: Any) -> Artifact:
    prompts = [chat.prompt(text) for text in PROMPTS]
    request = LanguageImport(source, **how)
    return import_overlay(chat, request, gate, prompts, concept="topic/t", progress=Lines().begin)


def answers(model: TransformersChat, guard: Artifact | None = None) -> list[tuple[int, ...]]:
    bank, guards = HiddenBank(), []
    if guard is not None:
        fitted = FittedGuard("g", guard.tensors, guard.meta.settings)
        bank = HiddenBank([method_named("language-overlay").stacked([fitted])])
        threshold = float(guard.meta.settings["threshold"])  # type: ignore[arg-type]
        guards = [RowGuard("g", threshold, 1.0)]
    replies = model.answer(
        PROMPTS, max_tokens=12, what="a", progress=Lines().begin, bank=bank, guards=guards
    )
    return [reply.tokens for reply in replies]


def changed(chat: TransformersChat, model: Any) -> TransformersChat:
    return TransformersChat(model, chat.tokenizer, name="changed")


def test_an_adapter_is_imported_exactly(tmp_path: Path, chat: TransformersChat) -> None:
    folder = save_adapter(tmp_path / "lora", chat.model, ("q_proj", "down_proj"))
    artifact = take_in(chat, folder, TokenGate.always(chat))
    wanted = answers(changed(chat, merged(chat.model, folder)))
    assert answers(chat, artifact) == wanted != answers(chat)
    assert artifact.meta.seams == ("linear",) and artifact.meta.calibration["gated"] is False


def test_whole_weights_are_cut_and_what_is_left_out_is_told(
    tmp_path: Path, chat: TransformersChat
) -> None:
    tuned = merged(
        chat.model, save_adapter(tmp_path / "lora", chat.model, ("v_proj", "up_proj"), size=0.2)
    )
    weights = {name: value.contiguous() for name, value in tuned.state_dict().items()}
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.1
    (tmp_path / "tuned").mkdir()
    save_file(weights, tmp_path / "tuned" / "model.safetensors")
    artifact = take_in(chat, tmp_path / "tuned", TokenGate.always(chat), rank=4)
    shares: Any = artifact.meta.settings["shares"]
    assert min(shares.values()) > 0.999 and len(shares) == 2 * LAYERS
    assert answers(chat, artifact) == answers(changed(chat, tuned))
    dropped: Any = artifact.meta.settings["dropped"]
    assert [*dropped.values()] == [["model.norm.weight"]]
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.1
    save_file(weights, tmp_path / "tuned" / "model.safetensors")
    artifact = take_in(chat, tmp_path / "tuned", TokenGate.always(chat), rank=4)
    assert artifact.meta.settings["dropped"][OUTSIDE] == ["lm_head"]  # type: ignore[index, call-overload]


def test_a_cut_that_loses_much_is_refused_unless_it_is_asked_for(
    tmp_path: Path, chat: TransformersChat
) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.1.mlp.up_proj.weight"
    weight = chat.model.state_dict()[name]
    noise = 0.1 * torch.randn(weight.shape, generator=generator)
    save_file({name: weight + noise}, tmp_path / "noise.safetensors")
    with pytest.raises(DataError, match="keep less than 90%"):
        take_in(chat, tmp_path / "noise.safetensors", TokenGate.always(chat), rank=2)
    accepted = take_in(
        chat, tmp_path / "noise.safetensors", TokenGate.always(chat), rank=2, least_share=0.0
    )
    assert accepted.meta.settings["share"] < 0.9  # type: ignore[operator]


def test_a_checkpoint_without_a_layer_that_is_served_is_refused(
    tmp_path: Path, chat: TransformersChat
) -> None:
    head = chat.model.state_dict()["lm_head.weight"] * 1.1
    save_file({"lm_head.weight": head.contiguous()}, tmp_path / "head.safetensors")
    with pytest.raises(DataError, match="no linear layer inside the decoder layers"):
        take_in(chat, tmp_path / "head.safetensors", TokenGate.always(chat))


def test_a_gate_keeps_other_answers(
    tmp_path: Path, chat: TransformersChat, ablation: Artifact
) -> None:
    folder = save_adapter(tmp_path / "lora", chat.model)
    artifact = take_in(chat, folder, TokenGate.of_artifact(ablation, chat))
    settings = {**artifact.meta.settings, "threshold": 1e6}
    silent = Artifact(
        artifact.meta.model_copy(update={"settings": settings, "tensors_sha256": ""}),
        artifact.tensors,
    )
    assert answers(chat, silent) == answers(chat)
    assert load_file(folder / "adapter_model.safetensors")
