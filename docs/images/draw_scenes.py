"""Draws docs/images/scenes.png: some test scenes of the reference with their captions."""

from pathlib import Path

from matplotlib.figure import Figure

from bitfront.reference.scenes import CLASSES, draw_scenes, picture


def main() -> None:
    """Write the picture beside this file."""
    scenes = draw_scenes("test", 12, seed=0)
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    for axes, image, label in zip(
        figure.subplots(2, 6).flat, scenes.images, scenes.labels.tolist(), strict=True
    ):
        axes.imshow(picture(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(CLASSES[label].replace(" of ", " of\n").replace("above ", "above\n"))
        axes.title.set_fontsize(9)
        axes.set_axis_off()
    figure.savefig(Path(__file__).with_name("scenes.png"), dpi=120)


if __name__ == "__main__":
    main()
