"""A diffusers scheduler as tables: one step over rows at different timesteps is one fused update.

A deterministic scheduler's step is linear in the sample and in the network's outputs. Those that
look back one step at most (DDIM, Euler, flow matching's Euler, DPM-Solver++ 2M, Heun) are

    x_{i+1} = a_i x_i + b_i out_i + carry_i,    carry_{i+1} = c_i x_i + d_i out_i,

with `c` and `d` zero where nothing is looked back on. The four coefficients of every step are
found by feeding the scheduler itself unit impulses in float64, and checked against it on a random
trajectory: no scheduler's arithmetic is repeated here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TESTED = (
    *("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "HeunDiscreteScheduler"),
)

Arrange = Callable[[Any, int], None]
"""Sets a scheduler's timesteps for a number of steps, as its pipeline does."""

_CLOSE = 1e-5
"""Schedulers compute in float32 here and there; relative to the largest number on the way."""


@dataclass(frozen=True)
class Schedule:
    """The tables of one number of steps, each `[evaluations]` and float32.

    There is one evaluation of the network a step, but for schedulers of a higher order. `signal`
    and `noise` say of what the sample before an evaluation is made: `signal x_0 + noise ε`.
    `initial` is what unit noise is multiplied by at the start.
    """

    timestep: Tensor
    input_scale: Tensor
    signal: Tensor
    noise: Tensor
    sample: Tensor
    output: Tensor
    next_sample: Tensor
    next_output: Tensor
    initial: float

    def __len__(self) -> int:
        return len(self.timestep)

    def looks_back(self, at: int) -> bool:
        """Whether the evaluation `at`, not the first, takes something of the one before it."""
        return bool(self.next_sample[at - 1] or self.next_output[at - 1])

    def rest(self, first: int) -> Schedule:
        """From the evaluation `first` on."""
        tables = {name: table[first:] for name, table in vars(self).items() if name != "initial"}
        return replace(self, **tables)


class Sampler:
    """The schedules of one scheduler, probed when first asked for and kept one behind the other.

    A row's place in them is its schedule's offset plus the evaluations that are behind it.
    """

    def __init__(
        self, scheduler: Any, arrange: Arrange, *, device: torch.device | str = "cpu"
    ) -> None:
        self._scheduler, self._arrange = scheduler, arrange
        self._device = torch.device(device)
        self._known: dict[tuple[int, int], tuple[Schedule, int]] = {}
        self._coefficients = torch.zeros(0, 4, device=self._device)
        self._inputs = torch.zeros(0, 2, device=self._device)

    def schedule(self, steps: int, skipped: int = 0) -> Schedule:
        """Of `steps`, the first `skipped` of them left out.

        Raises ValueError for a scheduler that does not fit, or a number of steps it refuses.
        """
        return self._find(steps, skipped)[0]

    def offset(self, steps: int, skipped: int = 0) -> int:
        """Where that schedule begins; raises as `schedule` does."""
        return self._find(steps, skipped)[1]

    def append(self, schedule: Schedule) -> int:
        """Put a schedule behind those that are there; says where it begins."""
        offset = len(self._inputs)
        columns = (schedule.sample, schedule.output, schedule.next_sample, schedule.next_output)
        self._coefficients = self._behind(self._coefficients, columns)
        self._inputs = self._behind(self._inputs, (schedule.timestep, schedule.input_scale))
        return offset

    def inputs(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps and input scales `[rows]` of rows at the places `at [rows]`."""
        found = self._inputs[at]
        return found[:, 0], found[:, 1]

    def step(
        self, at: Tensor, sample: Tensor, output: Tensor, carry: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next samples and carries `[rows, ...]`, float32; the first carry is zero."""
        shape = (-1, *[1] * (sample.ndim - 1))
        a, b, c, d = (column.view(shape) for column in self._coefficients[at].unbind(1))
        return a * sample + b * output + carry, c * sample + d * output

    def _find(self, steps: int, skipped: int) -> tuple[Schedule, int]:
        if skipped > 0:
            first = _order(self._scheduler) * skipped
            whole, offset = self._find(steps, 0)
            if first < len(whole) and not whole.looks_back(first):
                return whole.rest(first), offset + first
        if (steps, skipped) not in self._known:
            schedule = probe(self._scheduler, self._arrange, steps, skipped)
            self._known[steps, skipped] = schedule, self.append(schedule)
        return self._known[steps, skipped]

    def _behind(self, table: Tensor, columns: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([table, torch.stack(columns, 1).to(self._device)])


def probe(scheduler: Any, arrange: Arrange, steps: int, skipped: int = 0) -> Schedule:
    """The tables of `scheduler` for `steps`, of which the first `skipped` are not gone.

    A scheduler that looks back has nothing to look back on where it begins, as in diffusers' own
    pipelines that start from an image. It is left as it was, and so is torch's own draw.

    Raises ValueError, naming the scheduler and what to use, where its step is not of the form
    above.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps: at least one is needed")
    if not 0 <= skipped < steps:
        raise ValueError(f"{skipped} of {steps} steps cannot be skipped")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = _responses(scheduler, arrange, steps, skipped)
        _compare(scheduler, arrange, steps, skipped, found)
    tables = {name: value.float() for name, value in vars(found).items() if name != "initial"}
    return replace(found, **tables)


def _arranged(scheduler: Any, arrange: Arrange, steps: int) -> Any:
    copied = copy.deepcopy(scheduler)
    try:
        arrange(copied, steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{type(scheduler).__name__} cannot do {steps} steps: {error}") from error
    return copied


def _order(scheduler: Any) -> int:
    """Evaluations a step."""
    return int(getattr(scheduler, "order", 1))


def _begun(running: Any, skipped: int) -> Tensor:
    """The timesteps from there on; `running` is told where it begins."""
    first = skipped * _order(running)
    if skipped and hasattr(running, "set_begin_index"):
        running.set_begin_index(first)
    times: Tensor = running.timesteps[first:]
    return times


def _responses(scheduler: Any, arrange: Arrange, steps: int, skipped: int) -> Schedule:
    """Unit impulses: element 2i is the sample of evaluation i, 2i + 1 its output, the last none."""
    running = _arranged(scheduler, arrange, steps)
    # a scheduler that knows where it begins gives all of them the noise of that place
    signal, noise = _levels(running, running.timesteps)
    times = _begun(running, skipped)
    count = len(times)
    initial = float(getattr(running, "init_noise_sigma", 1.0))
    size = 2 * count + 1
    found = torch.zeros(count, size, dtype=torch.float64)
    scales = torch.ones(count, dtype=torch.float64)
    for i, time in enumerate(times):
        sample, output = torch.zeros(2, 1, size, 1, 1, dtype=torch.float64)
        sample[:, 2 * i] = output[:, 2 * i + 1] = 1.0
        scales[i] = _scaled(running, torch.ones_like(sample), time)[0, 0, 0, 0]
        found[i] = _stepped(running, output, time, sample)[0, :, 0, 0]
    reach = 2 * torch.arange(count)[:, None] - torch.arange(size)[None]
    # element 2(i-1) lies at a reach of 2, the one behind the last evaluation is fed nothing
    strange = (reach > 2) | (torch.arange(size)[None] == size - 1)
    if not bool(found.isfinite().all()) or bool((found[strange] != 0).any()):
        raise _unfit(scheduler)
    at = torch.arange(count)
    behind = at[1:]
    zero = torch.zeros(1, dtype=torch.float64)
    return Schedule(
        timestep=times.double().cpu(),
        input_scale=scales,
        signal=signal[-count:],
        noise=noise[-count:],
        sample=found[at, 2 * at],
        output=found[at, 2 * at + 1],
        next_sample=torch.cat([found[behind, 2 * behind - 2], zero]),
        next_output=torch.cat([found[behind, 2 * behind - 1], zero]),
        initial=initial,
    )


def _compare(scheduler: Any, arrange: Arrange, steps: int, skipped: int, tables: Schedule) -> None:
    """A random trajectory, the scheduler's own beside that of the tables."""
    running = _arranged(scheduler, arrange, steps)
    # larger than any range that a prediction might be clipped to
    outputs = 5 * torch.randn(len(tables), 1, 4, 2, 2, dtype=torch.float64)
    theirs = ours = tables.initial * 5 * torch.randn(1, 4, 2, 2, dtype=torch.float64)
    carry = torch.zeros_like(ours)
    largest = 1.0
    for i, time in enumerate(_begun(running, skipped)):
        _scaled(running, theirs, time)
        theirs = _stepped(running, outputs[i], time, theirs).double()
        following = tables.next_sample[i] * ours + tables.next_output[i] * outputs[i]
        ours = tables.sample[i] * ours + tables.output[i] * outputs[i] + carry
        carry = following
        largest = max(largest, float(theirs.abs().max()))
        if not float((theirs - ours).abs().max()) < _CLOSE * largest:
            raise _unfit(scheduler)


def _scaled(scheduler: Any, sample: Tensor, time: Tensor) -> Tensor:
    scale = getattr(scheduler, "scale_model_input", None)
    return sample if scale is None else scale(sample, time)


def _stepped(scheduler: Any, output: Tensor, time: Tensor, sample: Tensor) -> Tensor:
    try:
        stepped: Tensor = scheduler.step(output, time, sample, return_dict=False)[0]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise _unfit(scheduler) from error
    return stepped


def _levels(scheduler: Any, times: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise before each evaluation, by adding noise to a one and to a zero."""
    one, none = torch.ones(len(times), 1, dtype=torch.float64), torch.zeros(len(times), 1)
    none = none.double()
    if hasattr(scheduler, "scale_noise"):
        signal, noise = (scheduler.scale_noise(a, times, b) for a, b in ((one, none), (none, one)))
    else:
        signal, noise = (scheduler.add_noise(a, b, times) for a, b in ((one, none), (none, one)))
    return signal[:, 0], noise[:, 0]


def _unfit(scheduler: Any) -> ValueError:
    config = scheduler.config
    named = type(scheduler).__name__
    for option in ("clip_sample", "thresholding", "stochastic_sampling"):
        if config.get(option):
            return ValueError(
                f"{named} with {option}=True cannot step rows at different timesteps at once: "
                f"set {option}=False"
            )
    return ValueError(
        f"{named} cannot step rows at different timesteps at once: it draws noise of its own, "
        f"looks back more than one step, or is not linear as configured. Use one of "
        f"{', '.join(TESTED)}, for instance DPMSolverMultistepScheduler.from_config(...) of "
        "the pipeline's own scheduler's config"
    )
