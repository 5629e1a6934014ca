"""CUDA graphs without CUDA: what a forward runs is taped once, and replayed without its Python.

A tape holds every operator with the very tensors that it had. A replay runs them again on those
tensors: outputs that are made anew are copied to where the capture had them, as a graph writes to
the same addresses. What a CUDA graph cannot do is told, of the operators that are looked into
(`Graph.inside`): `syncs`, where the host reads the device, and `strangers`, tensors that come from
outside and are nobody's persistent buffer, which stay what they were at capture.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SYNCS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique2",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::allclose",
    "aten::repeat_interleave.Tensor",
}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_READS = {"cpu", "numpy", "tolist", "__array__"}
"""Methods of tensors that read the device, and that are no operators on a CPU."""
_LAUNCH_NOTHING = {"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty"}

_capturing = 0


def capturing() -> bool:
    """In the place of torch.cuda.is_current_stream_capturing."""
    return _capturing > 0


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    inside: ClassVar[dict[str, Callable[..., Any]]] = {}
    """Custom operators made of others, by qualified name: a capture sees what is in them, as CUDA
    does. The rest are kernels, which a replay runs again."""
    context: ClassVar[Callable[[], contextlib.AbstractContextManager[Any]]] = contextlib.nullcontext
    """Stands around a replay: where kernels look things up."""
    persistent: ClassVar[Callable[[], Iterable[Tensor]]] = tuple
    """Tensors that those operators may use, and that stay where they are."""
    kind: ClassVar[Callable[[], str]] = lambda: "full"
    """What is being captured: a "full" forward, or one of its "pieces"."""
    captured: ClassVar[dict[str, list[Graph]]] = {"full": [], "pieces": []}

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self.syncs: list[str] = []
        self.strangers: list[str] = []
        self.replays = 0
        self.looked_into = 0

    def replay(self) -> None:
        """Run what was captured. Raises RuntimeError where a shape is another one."""
        self.replays += 1
        with type(self).context():
            for function, args, kwargs, outputs in self.tape:
                again = tree_leaves(function(*args, **kwargs))
                for old, new in zip(tree_leaves(outputs), again, strict=True):
                    if isinstance(old, Tensor) and old is not new:
                        _settle(function, old, new)


def _settle(function: Any, old: Tensor, new: Tensor) -> None:
    if old.shape != new.shape:
        raise RuntimeError(f"{function} gives {tuple(new.shape)}, captured with {tuple(old.shape)}")
    if old.data_ptr() != new.data_ptr():
        old.copy_(new)


@contextlib.contextmanager
def capture(graph: Graph, *_args: Any, **_kwargs: Any) -> Iterator[Graph]:
    """In the place of torch.cuda.graph. The operators run while they are captured, which those of
    a GPU do not: what they write to persistent buffers is to be overwritten before it is read."""
    global _capturing
    _capturing += 1
    try:
        with _Recorder(graph):
            yield graph
        type(graph).captured[type(graph).kind()].append(graph)
    finally:
        _capturing -= 1


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.known = {_storage(tensor) for tensor in type(graph).persistent()}
        self.looking = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        inside = type(self.graph).inside.get(name)
        if inside is not None:
            self.graph.looked_into += 1
            self._know((args, kwargs))
            self.looking += 1
            try:
                with self, _Reads(self.graph):
                    return inside(*args, **kwargs)
            finally:
                self.looking -= 1
        if self.looking:
            self._judge(func, name, args, kwargs)
        outputs = func(*args, **kwargs)
        self._know(outputs)
        if name not in _LAUNCH_NOTHING:
            self.graph.tape.append((func, args, kwargs, outputs))
        return outputs

    def _know(self, tree: Any) -> None:
        self.known.update(_storage(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

    def _judge(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        masked = name in _INDEXED and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1] or ()
        )
        if name in _SYNCS or str(func).replace("aten.", "aten::") in _SYNCS or masked:
            self.graph.syncs.append(f"{name} at {_where()}")
        if name in _LAUNCH_NOTHING:
            return
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.numel() and _storage(leaf) not in self.known:
                self.known.add(_storage(leaf))
                shape = f"{tuple(leaf.shape)} {leaf.dtype}"
                self.graph.strangers.append(f"{name} of {shape} at {_where()}")


class _Reads(TorchFunctionMode):
    """Tells of methods that read a tensor without an operator."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS:
            self.graph.syncs.append(f"Tensor.{name} at {_where()}")
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _where() -> str:
    frames = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename != __file__ and "/torch/" not in frame.filename
    ]
    return " < ".join(f"{f.filename.split('/')[-1]}:{f.lineno}" for f in reversed(frames[-3:]))
