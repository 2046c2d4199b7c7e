"""Text that steers no terminal: what comes from data, files, templates and models is shown there, never obeyed."""

import unicodedata

# Categories of characters that move the cursor, colour, hide, reorder or cannot be encoded at all: control characters
# (ESC, which begins sequences of ANSI and OSC, and those of C1), formats (overrides of the direction of writing),
# surrogates (bytes of a file's name that are no text), and separators of lines and paragraphs.
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Line break and tab; the joiners of Persian, of Indian scripts and of emoji.
HARMLESS = "\n\t\u200c\u200d"


def visible(text: str) -> str:
    """The text with each character that would steer a terminal as its number, such as ⟨U+001B⟩."""
    if text.isprintable():  # nearly all are, and this asks once
        return text
    return "".join(map(_mark, text))


def _mark(character: str) -> str:
    steers = unicodedata.category(character) in STEERING and character not in HARMLESS
    return f"⟨U+{ord(character):04X}⟩" if steers else character
