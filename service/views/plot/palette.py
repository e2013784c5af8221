"""Colours that stay apart for colour-blind eyes and in grey (after Okabe and Ito)."""

from typing import Final

from bitfront.layers import Tower

INK: Final = "#22272e"
QUIET: Final = "#6b7480"
GRID: Final = "#e6e9ed"
TRIAL: Final = "#a9b2bd"
FRONT: Final = "#0b5cad"
TEST: Final = "#6fa8dc"
BASELINE: Final = "#d55e00"
PAPER: Final = "#ffffff"

TOWERS: Final = {
    Tower.VISION: "#0b5cad",
    Tower.TEXT: "#cc7a00",
    Tower.PROJECTOR: "#009e73",
    Tower.LANGUAGE: "#9b4f96",
}
