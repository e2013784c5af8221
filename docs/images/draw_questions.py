"""Draws docs/images/questions.png: some test pictures of the reference with their questions."""

from pathlib import Path

from matplotlib.figure import Figure

from bitfront.reference.questions import draw_questions
from bitfront.reference.scenes import picture


def main() -> None:
    """Write the picture beside this file."""
    drawn = draw_questions("test", 10, seed=0)
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, image, question, answer in zip(
        figure.subplots(2, 5).flat, drawn.images, drawn.questions, drawn.answers, strict=True
    ):
        axes.imshow(picture(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(f"{question}?\n{answer}", fontsize=8)
        axes.set_axis_off()
    figure.savefig(Path(__file__).with_name("questions.png"), dpi=120)


if __name__ == "__main__":
    main()
