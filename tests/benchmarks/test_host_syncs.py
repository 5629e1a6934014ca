"""Host syncs are counted by the names of a profile's events."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.host_syncs import ROOT, Syncs, count_syncs, own_places, places_in, syncs_in

PROFILE = [
    ("aten::mm", 900),
    ("cudaLaunchKernel", 4000),
    ("cudaStreamSynchronize", 30),
    ("cudaEventSynchronize", 10),
    ("cudaDeviceSynchronize", 1),
    # waits on the device's own side stop no CPU
    ("cudaStreamWaitEvent", 77),
    ("Memcpy DtoH (Device -> Pageable)", 12),
    ("Memcpy DtoH (Device -> Pinned)", 10),
    ("Memcpy HtoD (Pageable -> Device)", 500),
    ("aten::item", 8),
    ("aten::_local_scalar_dense", 8),
]


def test_waits_copies_and_scalars_are_told_apart() -> None:
    assert syncs_in(PROFILE) == Syncs(waits=41, copies=22, scalars=8)
    assert syncs_in([]) == Syncs()


def test_what_is_our_own_is_the_difference_for_one_step() -> None:
    guarded, bare = Syncs(60, 40, 20).per(20), Syncs(20, 20, 0).per(20)
    assert guarded - bare == Syncs(2.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="needs a step"):
        guarded.per(0)


def test_a_profile_of_torch_has_the_scalars_that_are_read() -> None:
    def run() -> None:
        for _ in range(5):
            torch.ones(3).sum().item()

    assert count_syncs(run).scalars == 5


def test_places_are_lines_of_this_repository() -> None:
    sync = "called a synchronizing CUDA operation (Triggered internally at ...)"
    caught = [
        (sync, str(ROOT / "steering/hidden/rows.py"), 7),
        (sync, str(ROOT / "steering/hidden/rows.py"), 7),
        (sync, str(ROOT / "steering/hidden/bank.py"), 1),
        (sync, str(ROOT / ".venv/lib/torch/x.py"), 1),
        (sync, "/usr/lib/python3/vllm/worker.py", 5),
        ("deprecated", str(ROOT / "steering/hidden/bank.py"), 3),
    ]
    places = places_in(caught)
    assert places == {"steering/hidden/rows.py:7": 2, "steering/hidden/bank.py:1": 1}
    assert [*places] == ["steering/hidden/rows.py:7", "steering/hidden/bank.py:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what holds without a GPU")
def test_without_a_gpu_there_are_no_places() -> None:
    assert own_places(lambda: torch.ones(1).item()) == {}
    assert Path(ROOT / "benchmarks").is_dir()
