"""A stretch of a stream between two places where it can be cut: run by itself, there and back."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.execution.streams import ALL, Rows, Stream


class _Reached(Exception):
    """Ends a run at the end of a section."""


@dataclass(frozen=True, slots=True)
class Section:
    """What runs between two transformer blocks of a stream.

    Attributes:
        layers: Those that run in it.
        blocks: The transformer blocks in it.
        skipping: Lets a run begin with what enters the section; None where that is the stream's
            own beginning.
        end: The module whose output leaves the section; None where that is the stream's output.
        later: Modules that run after it only.
    """

    layers: frozenset[str]
    blocks: tuple[nn.Module, ...]
    skipping: Callable[[Tensor], AbstractContextManager[None]] | None
    end: nn.Module | None
    later: Sequence[nn.Module]

    def run(self, stream: Stream, batch: int, entry: Tensor | None, rows: Rows = ALL) -> Tensor:
        """What leaves the section for a batch; gradients flow where they are enabled.

        Args:
            stream: The samples.
            batch: The batch's number.
            entry: What enters; None at the stream's beginning.
            rows: Which of the batch's samples.

        Returns:
            The stream's output, or the end's; empty where these samples do not pass the end.
        """
        left: list[Tensor] = []

        def reach(_module: nn.Module, _args: object, output: Tensor) -> None:
            left.append(output)
            raise _Reached

        def pass_by(_module: nn.Module, _args: object) -> None:
            raise _Reached

        with ExitStack() as stack:
            if entry is not None and self.skipping is not None:
                # In memory of its own: products of what a file's page holds may have other bits.
                stack.enter_context(self.skipping(entry.clone()))
            if self.end is not None:
                stack.callback(self.end.register_forward_hook(reach).remove)
                for module in self.later:
                    stack.callback(module.register_forward_pre_hook(pass_by).remove)
            with suppress(_Reached):
                return stream.run(batch, rows=rows, stand_in=entry is not None)
        return left[0] if left else torch.empty(0)
