"""The day that chat templates are told.

Some templates print today's date (`strftime_now`, as Llama 3.2's). Rows that were prepared yesterday would then show
another prompt than the one generation sees today. So the day is a value that stays: a run writes it down when it is
created, and everything of the run that renders a template, data, evaluation and synthesis alike, is told that day.
"""

from datetime import date, datetime, time
from functools import cache

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import _compile_jinja_template

from gendistill.errors import UserError

ATTRIBUTE = "gendistill_date"  # on the tokenizer, since whatever renders a template has that at hand


def freeze_date(tokenizer, day: date) -> None:
    """From here on templates of this tokenizer print this day."""
    setattr(tokenizer, ATTRIBUTE, day)


def date_of(tokenizer) -> date:
    """The day that this tokenizer's templates are told; not frozen, the day on which this process first asked."""
    return getattr(tokenizer, ATTRIBUTE, None) or _this_day()


def tell_date(tokenizer, template: str) -> None:
    """Has the next rendering of this template by transformers print the tokenizer's day, at midnight.

    Raises:
        UserError: the template is none: it cannot be compiled.
    """
    told = datetime.combine(date_of(tokenizer), time()).strftime
    # transformers hands a template no function of ours, only text and numbers, so its own is replaced where the
    # compiled template looks for it. Each template has an environment to itself.
    try:
        compiled = _compile_jinja_template(template)
    except TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is damaged (line {error.lineno}: {error.message}); fetch the tokenizer's files again, "
            "or mend the template"
        ) from None
    compiled.environment.globals["strftime_now"] = told


def prints_date(tokenizer) -> bool:
    """Whether the chat template may print the day; then rows of two days are different rows."""
    return bool(tokenizer.chat_template) and "strftime_now" in tokenizer.get_chat_template()


@cache
def _this_day() -> date:
    # Kept: data that is prepared over midnight must not be of two days under the key of one.
    return date.today()
