"""A dual encoder's tokenizer as a file, for programs that have neither its library nor bitfront."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CaptionTokenizer:
    """What makes rows of tokens of captions, with the package tokenizers.

    Attributes:
        json: The tokenizer as that package reads it; it fills rows up, and cuts them, to the
            model's length.
        cleans: Whether captions are cleaned before as open_clip does it: ftfy mends them, entities
            of HTML become letters, white space becomes single spaces, and letters small.
    """

    json: str
    cleans: bool
