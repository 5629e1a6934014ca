"""A diffusers scheduler as tables: one step over rows at different timesteps is one fused update.

A deterministic scheduler's step is linear in the sample and in the network's outputs. Those that
depend on one previous step at most (DDIM, Euler, flow matching's Euler, DPM-Solver++ 2M, Heun) are

    x_{i+1} = a_i x_i + b_i out_i + carry_i,    carry_{i+1} = c_i x_i + d_i out_i,

with `c` and `d` zero for a first-order step. The four coefficients of every step are measured by
feeding the scheduler unit impulses in float64, and checked against it on a random trajectory: the
arithmetic of no scheduler is repeated here.
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
"""Relative to the largest value of a trajectory: some schedulers compute in float32."""


@dataclass(frozen=True)
class Schedule:
    """The tables of one number of steps, each `[evaluations]` and float32.

    A step is one evaluation of the network, more for schedulers of a higher order. The sample
    before an evaluation is `signal x_0 + noise ε`. `initial` multiplies unit noise at the start.
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

    @property
    def sigma(self) -> list[float]:
        """The noise level before each evaluation, `noise / signal`; infinite for pure noise."""
        return (self.noise / self.signal).tolist()

    def looks_back(self, at: int) -> bool:
        """Whether the evaluation `at`, not the first, depends on the one before it."""
        return bool(self.next_sample[at - 1] or self.next_output[at - 1])

    def rest(self, first: int) -> Schedule:
        """The schedule from the evaluation `first` on."""
        tables = {name: table[first:] for name, table in vars(self).items() if name != "initial"}
        return replace(self, **tables)


class Sampler:
    """The schedules of one scheduler, probed on first use and kept one after the other in tables.

    A row's position in them is the offset of its schedule plus the evaluations it has done.
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
        """The schedule of `steps` without the first `skipped` of them.

        Raises ValueError for a scheduler that cannot be used, or a number of steps it refuses.
        """
        return self._find(steps, skipped)[0]

    def offset(self, steps: int, skipped: int = 0) -> int:
        """The position of that schedule in the tables; raises as `schedule` does."""
        return self._find(steps, skipped)[1]

    def append(self, schedule: Schedule) -> int:
        """Add a schedule to the tables; returns its position."""
        offset = len(self._inputs)
        columns = (schedule.sample, schedule.output, schedule.next_sample, schedule.next_output)
        self._coefficients = self._appended(self._coefficients, columns)
        self._inputs = self._appended(self._inputs, (schedule.timestep, schedule.input_scale))
        return offset

    def inputs(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps and input scales `[rows]` of rows at the positions `at [rows]`."""
        inputs = self._inputs[at]
        return inputs[:, 0], inputs[:, 1]

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

    def _appended(self, table: Tensor, columns: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([table, torch.stack(columns, 1).to(self._device)])


def probe(scheduler: Any, arrange: Arrange, steps: int, skipped: int = 0) -> Schedule:
    """The tables of `scheduler` for `steps`, of which the first `skipped` are left out.

    The first step that is taken is first-order, as in diffusers' pipelines that start from an
    image. Neither the scheduler nor the state of torch's random generator changes.

    Raises ValueError, naming the scheduler and those that can be used, if its step does not have
    the form above.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps: at least one is needed")
    if not 0 <= skipped < steps:
        raise ValueError(f"{skipped} of {steps} steps cannot be skipped")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        schedule = _responses(scheduler, arrange, steps, skipped)
        _compare(scheduler, arrange, steps, skipped, schedule)
    tables = {name: value.float() for name, value in vars(schedule).items() if name != "initial"}
    return replace(schedule, **tables)


def _arranged(scheduler: Any, arrange: Arrange, steps: int) -> Any:
    copied = copy.deepcopy(scheduler)
    try:
        arrange(copied, steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{type(scheduler).__name__} cannot do {steps} steps: {error}") from error
    return copied


def _order(scheduler: Any) -> int:
    """The number of evaluations in one step."""
    return int(getattr(scheduler, "order", 1))


def _timesteps_from(running: Any, skipped: int) -> Tensor:
    """The timesteps after `skipped` steps, which becomes the begin index of `running`."""
    first = skipped * _order(running)
    if skipped and hasattr(running, "set_begin_index"):
        running.set_begin_index(first)
    timesteps: Tensor = running.timesteps[first:]
    return timesteps


def _responses(scheduler: Any, arrange: Arrange, steps: int, skipped: int) -> Schedule:
    """The responses to unit impulses: element 2i is one in the sample of evaluation i, element
    2i + 1 in its output; the last is zero throughout."""
    running = _arranged(scheduler, arrange, steps)
    # once a begin index is set, a scheduler adds the noise of that index at every timestep
    signal, noise = _levels(running, running.timesteps)
    times = _timesteps_from(running, skipped)
    count = len(times)
    initial = float(getattr(running, "init_noise_sigma", 1.0))
    size = 2 * count + 1
    responses = torch.zeros(count, size, dtype=torch.float64)
    scales = torch.ones(count, dtype=torch.float64)
    for i, time in enumerate(times):
        sample, output = torch.zeros(2, 1, size, 1, 1, dtype=torch.float64)
        sample[:, 2 * i] = output[:, 2 * i + 1] = 1.0
        scales[i] = _scaled(running, torch.ones_like(sample), time)[0, 0, 0, 0]
        responses[i] = _stepped(running, output, time, sample)[0, :, 0, 0]
    reach = 2 * torch.arange(count)[:, None] - torch.arange(size)[None]
    # element 2(i-1), the previous sample, lies at a reach of 2; the last element is fed nothing
    out_of_form = (reach > 2) | (torch.arange(size)[None] == size - 1)
    if not bool(responses.isfinite().all()) or bool((responses[out_of_form] != 0).any()):
        raise _unfit(scheduler)
    at = torch.arange(count)
    later = at[1:]
    zero = torch.zeros(1, dtype=torch.float64)
    return Schedule(
        timestep=times.double().cpu(),
        input_scale=scales,
        signal=signal[-count:],
        noise=noise[-count:],
        sample=responses[at, 2 * at],
        output=responses[at, 2 * at + 1],
        next_sample=torch.cat([responses[later, 2 * later - 2], zero]),
        next_output=torch.cat([responses[later, 2 * later - 1], zero]),
        initial=initial,
    )


def _compare(scheduler: Any, arrange: Arrange, steps: int, skipped: int, tables: Schedule) -> None:
    """Raise ValueError if a random trajectory of the scheduler differs from that of the tables."""
    running = _arranged(scheduler, arrange, steps)
    # larger than any range to which a scheduler might clip predictions
    outputs = 5 * torch.randn(len(tables), 1, 4, 2, 2, dtype=torch.float64)
    expected = sample = tables.initial * 5 * torch.randn(1, 4, 2, 2, dtype=torch.float64)
    carry = torch.zeros_like(sample)
    largest = 1.0
    for i, time in enumerate(_timesteps_from(running, skipped)):
        _scaled(running, expected, time)
        expected = _stepped(running, outputs[i], time, expected).double()
        following = tables.next_sample[i] * sample + tables.next_output[i] * outputs[i]
        sample = tables.sample[i] * sample + tables.output[i] * outputs[i] + carry
        carry = following
        largest = max(largest, float(expected.abs().max()))
        if not float((expected - sample).abs().max()) < _CLOSE * largest:
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
    """Signal and noise before each evaluation, measured by adding noise to a one and to a zero."""
    one, none = torch.ones(len(times), 1, dtype=torch.float64), torch.zeros(len(times), 1)
    none = none.double()
    if hasattr(scheduler, "scale_noise"):
        signal, noise = (scheduler.scale_noise(a, times, b) for a, b in ((one, none), (none, one)))
    else:
        signal, noise = (scheduler.add_noise(a, b, times) for a, b in ((one, none), (none, one)))
    return signal[:, 0], noise[:, 0]


def _unfit(scheduler: Any) -> ValueError:
    config = scheduler.config
    name = type(scheduler).__name__
    for option in ("clip_sample", "thresholding", "stochastic_sampling"):
        if config.get(option):
            return ValueError(
                f"{name} with {option}=True cannot step rows at different timesteps at once: "
                f"set {option}=False"
            )
    return ValueError(
        f"{name} cannot step rows at different timesteps at once: it adds noise in a step, "
        f"depends on more than one previous step, or is not linear as configured. Use one of "
        f"{', '.join(TESTED)}, for instance DPMSolverMultistepScheduler.from_config(...) of "
        "the pipeline's own scheduler's config"
    )
