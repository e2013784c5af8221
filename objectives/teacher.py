"""The model in full precision on one split: its features, and gradients of its own loss."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.data import SplitName, Task
from objectives.similarity import class_features, logits
from objectives.towers import TowerInput, TowerRunner

FULL_PLAN = Plan(())
DRAWS = 4


class Teacher:
    """Full-precision features over the calibration split, computed once.

    Attributes:
        runner: What runs the towers; it knows all activations between blocks.
        inputs: The calibration images, and the captions.
        features: Each tower's features, not normalised.
    """

    def __init__(self, model: DualEncoder, task: Task, switch: PlanSwitch, seed: int) -> None:
        self.model = model
        self.task = task
        self.switch = switch
        self.runner = TowerRunner(model, switch)
        self.inputs = {
            Tower.VISION: TowerInput.images(task, SplitName.CALIBRATION, model),
            Tower.TEXT: TowerInput.captions(task),
        }
        self.features = {
            tower: self.runner.run(given, FULL_PLAN) for tower, given in self.inputs.items()
        }
        self._seed = seed

    @property
    def images(self) -> int:
        """The number of calibration images."""
        return len(self.features[Tower.VISION])

    def scores(self, tower: Tower, features: Tensor) -> Float[Tensor, "n classes"]:
        """The logits where one tower has other features; the other tower keeps its own."""
        given = {**self.features, tower: features}
        classes = class_features(given[Tower.TEXT], len(self.task.templates))
        return logits(given[Tower.VISION], classes, self.model.logit_scale)

    def feature_gradients(self, tower: Tower) -> Iterator[Float[Tensor, "n d"]]:
        """Gradients of `sum_i -log p(y_i | x_i)` for a tower's features, `DRAWS` times.

        The labels `y_i` are drawn from the model's own probabilities: then the square of such
        a gradient, divided by the number of images, has the Fisher information as its mean
        (the cross terms between images have mean zero).
        """
        generator = torch.Generator().manual_seed(self._seed)
        for _ in range(DRAWS):
            features = self.features[tower].clone().requires_grad_()
            with torch.enable_grad():
                log_p = torch.log_softmax(self.scores(tower, features), dim=-1)
                drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
                loss = -log_p.gather(1, drawn.to(log_p.device)).sum()
            (gradient,) = torch.autograd.grad(loss, features)
            yield gradient

    def backward(self, tower: Tower, on_batch: Callable[[], None] = lambda: None) -> None:
        """Sends every draw's gradient back through the tower, batch by batch.

        Tensor hooks and parameters that require gradients receive them; `on_batch` is called
        behind each batch of images, whose gradients are independent, and behind each draw for
        captions, whose gradients belong together.
        """
        self.switch.clear()
        for gradient in self.feature_gradients(tower):
            given = self.inputs[tower]
            parts = torch.split(gradient, list(given.sizes))
            for batch, part in enumerate(parts):
                samples = given.read(batch).to(self.model.device)
                with torch.enable_grad():
                    if tower is Tower.VISION:
                        features = self.model.encode_images(samples)
                    else:
                        features = self.model.encode_texts(samples)
                torch.autograd.backward(features, part)
                if tower is Tower.VISION:
                    on_batch()
            if tower is Tower.TEXT:
                on_batch()
