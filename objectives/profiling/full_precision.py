"""The model in full precision on the calibration split: its outputs, and gradients of its loss."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.layers import Tower
from bitfront.vlm import PlanSwitch
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.execution.runner import FULL_PLAN, StreamRunner
from objectives.execution.streams import Stream

__all__ = ["DRAWS", "FULL_PLAN", "FullPrecisionReference"]

DRAWS = 4


class FullPrecisionReference:
    """What full precision gives on the calibration split, computed once.

    Attributes:
        runner: What runs the streams; it knows all activations between blocks.
        streams: The calibration samples, each tower in one of them.
        outputs: What each stream gives, by its key.
        seed: Of what is drawn.
    """

    def __init__(
        self, task: Task, switch: PlanSwitch, seed: int, *, cache_nbytes: int = 1 << 30
    ) -> None:
        self.model = task.model
        self.task = task
        self.switch = switch
        self.runner = StreamRunner(task.model, switch, cache_nbytes)
        self.streams = task.streams(SplitName.CALIBRATION)
        self.outputs = {stream.key: self.runner.run(stream, FULL_PLAN) for stream in self.streams}
        self.seed = seed

    def stream(self, tower: Tower) -> Stream:
        """The stream that runs through a tower."""
        return next(stream for stream in self.streams if tower in stream.towers)

    @property
    def predictions(self) -> int:
        """The number of predicted distributions: one an image, or one a token of an answer."""
        return len(self.task.scores(self.outputs))

    def scores(self, stream: Stream, output: Tensor) -> Float[Tensor, "predictions classes"]:
        """The logits where one stream gives something else; the others keep their own."""
        return self.task.scores({**self.outputs, stream.key: output})

    def output_gradients(
        self, stream: Stream, draws: int = DRAWS
    ) -> Iterator[Float[Tensor, "rows d"]]:
        """Gradients of `sum_i -log p(y_i | x_i)` for what a stream gives, `draws` times.

        The labels `y_i` are drawn from the model's own probabilities: then the square of such
        a gradient, divided by the number of predictions, has the Fisher information as its
        mean (the cross terms between predictions have mean zero).
        """
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(draws):
            output = self.outputs[stream.key].clone().requires_grad_()
            with torch.enable_grad():
                log_p = torch.log_softmax(self.scores(stream, output).float(), dim=-1)
                drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
                loss = -log_p.gather(1, drawn.to(log_p.device)).sum()
            (gradient,) = torch.autograd.grad(loss, output)
            yield gradient

    def backward(self, tower: Tower, on_batch: Callable[[], None] = lambda: None) -> None:
        """Sends every draw's gradient back through the stream of a tower, batch by batch.

        Tensor hooks and parameters that require gradients receive them; `on_batch` is called
        after each batch whose gradients are independent, and after each draw where all of
        them belong together.
        """
        self.switch.clear()
        stream = self.stream(tower)
        for gradient in self.output_gradients(stream):
            for batch, part in enumerate(torch.split(gradient, list(stream.rows))):
                with torch.enable_grad():
                    output = stream.run(batch)
                if output.requires_grad:  # questions without images never pass the vision tower
                    torch.autograd.backward(output, part)
                if stream.are_independent:
                    on_batch()
            if not stream.are_independent:
                on_batch()
