"""This module replays a UNet's forward as a CUDA graph. At small batches a GPU is done with a kernel before the host
has launched the next one; a graph launches all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .unet import UNet


class Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]  # the graph reads these addresses
    output: Tensor  # and writes this one


class Graphs:
    """One CUDA graph for each shape and dtype of the inputs, recorded on first use; the `limit` last used are kept.

    A graph replays kernels on the addresses they had. Weights changed in place act at once. If any weight or submodule
    has been replaced or moved, all graphs are dropped and recorded again. What runs on the host alone is not replayed:
    `can_run` therefore refuses while an attention hook is set, and torch's own module hooks are not called.

    All graphs share memory for their intermediates, so that only one may run at a time: a network with graphs belongs
    to one CUDA stream. A copy of a network starts without recordings.
    """

    def __init__(self, unet: UNet, limit: int):
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.unet, self.limit = unet, limit
        self._forget()

    def can_run(self, x: Tensor, t: Tensor, context: Tensor) -> bool:
        """Whether a replay would do all that the forward does."""
        if torch.compiler.is_compiling() or not x.is_cuda or context.device != x.device:
            return False
        if self.unet.hook_slot.fn is not None or torch.is_autocast_enabled("cuda"):
            return False
        if torch.cuda.is_current_stream_capturing():  # the caller records a graph of his own
            return False
        tensors = (x, t, context, *self.unet.parameters()) if torch.is_grad_enabled() else ()
        return not any(tensor.requires_grad for tensor in tensors)

    def run(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        inputs = (x, t, context)
        if self.recordings and self.weights != self._addresses():
            self._forget()
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        recording = self.recordings.pop(key, None) or self._record(inputs)
        self.recordings[key] = recording  # the last used one stands last
        if len(self.recordings) > self.limit:
            del self.recordings[next(iter(self.recordings))]
        for kept, given in zip(recording.inputs, inputs, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        return recording.output.clone()  # the next replay overwrites it

    def _record(self, inputs: tuple[Tensor, ...]) -> Recording:
        # Outside inference mode: a tensor made within it could not be written to outside.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(inputs[0].device):
            if not self.recordings:
                self.pool = torch.cuda.graph_pool_handle()
                self.parts = [(module._parameters, module._modules) for module in self.unet.modules()]
                self.weights = self._addresses()
            kept = tuple(torch.empty(one.shape, dtype=one.dtype, device=one.device).copy_(one) for one in inputs)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries choose and load their kernels, which no recording allows
                for _ in range(2):
                    self.unet._predict(*kept)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                output = self.unet._predict(*kept)
        return Recording(graph, kept, output)

    def _addresses(self) -> list[int]:
        """Where all weights lie, and which submodules there are. Walking the modules anew would take four times as
        long."""
        weights = [weight.data_ptr() for own, _ in self.parts for weight in own.values() if weight is not None]
        return weights + [id(module) for _, children in self.parts for module in children.values()]

    def _forget(self):
        self.recordings: dict[tuple, Recording] = {}
        self.parts, self.weights, self.pool = [], [], None

    def __deepcopy__(self, memo: dict) -> Graphs:
        return Graphs(memo[id(self.unet)] if id(self.unet) in memo else self.unet, self.limit)

    def __getstate__(self) -> dict:
        return {"unet": self.unet, "limit": self.limit}

    def __setstate__(self, state: dict):
        self.__init__(**state)
