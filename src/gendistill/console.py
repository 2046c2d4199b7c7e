"""The console that everything is printed by, which shows what would steer a terminal."""

from collections.abc import Iterable

from rich import console
from rich.segment import Segment
from rich.text import Text

from gendistill.visible import visible


class Console(console.Console):
    """rich's console for texts from anywhere: no markup, no names of emoji, no highlighting, and `visible` alone.

    Styles are given as styles (`rich.text.Text`), so that no text can ask for one.
    """

    def __init__(self, **options):
        """Options are rich's."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options) -> Text:
        """As rich's, of what is printed as a string, before rich takes some control characters out."""
        return super().render_str(visible(text), **options)

    def render(self, renderable, options=None) -> Iterable[Segment]:
        """As rich's, which whatever is printed comes through, each cell of a table by itself."""
        for segment in super().render(renderable, options):
            # rich's own movements of the cursor, of progress bars, are marked as such.
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
