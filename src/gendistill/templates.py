"""Rendering of chat templates, which are programs that come with a model: within limits of work and size.

What a template may call is transformers' choice, and so is its sandbox, which keeps it from files and objects. It keeps
no template from looping for ever or from filling the memory. Here every iteration, call, operator and output is counted
before it is done, so that a limit does not depend on the machine or on who else works there.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from math import prod
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

from gendistill.errors import UserError

# Of one rendering, in characters that are made on the way; a long conversation takes some millions.
MOST_WORK = 1 << 28
STEP = 256  # what an iteration, a call, an operator or an output costs besides, so that there are a million of them
# The result may hold one argument for every character of another.
PRODUCTS = set("join indent wordwrap expandtabs translate center ljust rjust zfill tojson batch slice".split())


# Filters that look at no more than one of what a value holds; all others may go through it, or write it out.
LOOKING = {"length", "count", "first", "last", "default", "d"}
COMPARING = set("in eq == equalto ne != lt < lessthan le <= gt > greaterthan ge >=".split())  # of the tests


class _Work(threading.local):
    """What the rendering that a thread is in may still do."""

    left = MOST_WORK


_work = _Work()


def render(tokenizer, messages: list[dict[str, str]], now: Callable[[str], str] | None = None, **options) -> str:
    """A conversation as the tokenizer's chat template writes it, as `tokenizer.apply_chat_template`.

    Args:
        now: the template's `strftime_now`; transformers' own if None.
        options: further variables, such as add_generation_prompt.

    Raises:
        UserError: the template refuses the conversation, fails, or does too much.
    """
    with _Limits():
        template = _prepared(tokenizer, now)
        return template.render(messages=messages, **_variables(tokenizer, options))


def render_marked(
    tokenizer, messages: list[dict[str, str]], now: Callable[[str], str] | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """As `render`; and where in it the template's {% generation %} markers stand, as (start, end) in characters."""
    with _Limits():
        template = _prepared(tokenizer, now)
        return _render_with_assistant_indices(template, messages, **_variables(tokenizer, {}))


def _variables(tokenizer, options: dict) -> dict[str, Any]:
    variables = {"tools": None, "documents": None, "add_generation_prompt": False}
    return variables | tokenizer.special_tokens_map | {"enable_thinking": False} | options


def _prepared(tokenizer, now: Callable[[str], str] | None) -> jinja2.Template:
    template = _compiled(tokenizer.get_chat_template())
    clock = template.environment.globals
    clock["strftime_now"] = now or clock["transformers_now"]  # each time: two tokenizers may have the same template
    return template


@lru_cache
def _compiled(source: str) -> jinja2.Template:
    """A template in an environment of its own, with everything that transformers lets templates use."""
    environment = _compile_jinja_template.__wrapped__("").environment
    environment.__class__ = LimitedEnvironment  # transformers makes it within a function, of the class it is based on
    environment.finalize, environment.optimized = _counted_whole, False  # nothing is worked out uncounted beforehand
    environment.filters = {name: _counted_filter(name, filter) for name, filter in environment.filters.items()}
    environment.tests |= {name: _counted_test(environment.tests[name]) for name in COMPARING}
    environment.filters |= {
        "gendistill_steps": _counted_steps,
        "gendistill_concat": _concat,
        "gendistill_whole": _counted_whole,
        "gendistill_outer": _counted_outer,
    }
    environment.globals["transformers_now"] = environment.globals["strftime_now"]
    return environment.from_string(source)


class _Limits:
    """Counts a rendering, and tells in one kind of error what goes wrong in it."""

    def __enter__(self) -> None:
        _work.left = MOST_WORK

    def __exit__(self, kind, error, _) -> None:
        if isinstance(error, jinja2.TemplateSyntaxError):
            raise UserError(
                f"the chat template is damaged (line {error.lineno}: {error.message}); fetch the tokenizer's files "
                "again, or mend the template"
            ) from None
        if isinstance(error, jinja2.TemplateError):
            raise UserError(f"the chat template refuses this conversation: {error}") from None
        # It is a program of somebody else's: whatever it raises is about it.
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(f"the chat template fails: {kind.__name__}: {str(error)[:200]}") from None


def _spend(cost: int) -> None:
    _work.left = left = _work.left - cost
    if left < 0:
        raise UserError(
            f"the chat template does too much for one conversation (more than {MOST_WORK // STEP:,} steps or "
            f"{MOST_WORK:,} characters); take a tokenizer whose template is sound"
        )


def _size(value: Any) -> int:
    """Characters of a value written out, whatever it holds."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length()
    if isinstance(value, dict):
        return _size(list(value.keys())) + _size(list(value.values()))
    if isinstance(value, list | tuple | set | frozenset | range):
        _spend(STEP * len(value))  # of lists that hold a list twice, which holds a list twice, there is no end
        return len(value) + sum(_size(item) for item in value)
    return 1


def _weight(value: Any) -> int:
    """Bytes of a value without what it holds; of a whole number its own value, since it may ask for so many."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, dict | list | tuple | set | frozenset | range):
        return 8 * len(value)
    return len(value) if isinstance(value, str | bytes) else 1


def _filled_in(text: str, values: Iterable[Any]) -> int:
    """Characters that a text with fields may become: `%` and `format`, with their widths."""
    widths = sum(int(width[:12]) for width in re.findall(r"\d{3,}", text))
    fields = text.count("%") + text.count("{")
    return len(text) + widths + fields * sum(max(_size(value), _weight(value)) for value in values)


def _spend_on_call(name: str, values: list[Any]) -> None:
    if name == "replace" and len(values) > 2 and isinstance(values[0], str):
        text, old, new = values[:3]
        cost = len(text) + text.count(str(old)) * len(str(new))
    elif name == "format" and values and isinstance(values[0], str):
        cost = _filled_in(values[0], values[1:])
    elif name == "sum":  # of lists it makes each partial sum anew
        cost = _size(values[0]) * max(1, _weight(values[0]))
    elif name in PRODUCTS:
        cost = prod(max(1, _size(value), _weight(value)) for value in values)
    else:
        cost = sum(_weight(value) for value in values)
    _spend(STEP + cost)


def _spend_on_operator(operator: str, left: Any, right: Any) -> None:
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and operator == "**":
        cost = left.bit_length() * max(0, right)
    elif whole:
        cost = left.bit_length() + right.bit_length()
    elif operator == "*":
        cost = max(1, _weight(left)) * max(1, _weight(right))
    elif operator == "%" and isinstance(left, str):
        cost = _filled_in(left, right if isinstance(right, tuple) else (right,))
    else:
        cost = _weight(left) + _weight(right)
    _spend(STEP + cost)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with every operator, call, iteration and joining of texts counted."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is type(right) is str:  # as templates do most
            _spend(STEP + len(left) + len(right))
            return left + right
        _spend_on_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context, __obj, *args, **kwargs) -> Any:
        if isinstance(__obj, LoopContext):  # a loop called from within itself
            args = (_counted_steps(__context, *args),)
        else:
            method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps some
            own = getattr(method, "__self__", None)
            owned = [own] if isinstance(own, str | bytes | dict | list) else []
            _spend_on_call(getattr(method, "__name__", ""), [*owned, *args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, *source) -> nodes.Template:
        return _Counting().visit(super()._parse(*source)).set_environment(self)


class _Counting(NodeTransformer):
    """Sends through filters that count what loops go over, what is joined by ~, compared, and cut out."""

    def visit_For(self, loop: nodes.For) -> nodes.For:
        self.generic_visit(loop)
        constant = sum(len(text.data) for text in loop.find_all(nodes.TemplateData))  # written at each iteration
        loop.iter = _filtered(loop.iter, "gendistill_steps", nodes.Const(constant))
        return loop

    def visit_Compare(self, compared: nodes.Compare) -> nodes.Compare:
        self.generic_visit(compared)
        operands = [compared, *compared.ops]
        # With a constant nothing long is compared, only searched.
        if len(operands) == 2 and any(isinstance(each.expr, nodes.Const) for each in operands):
            operands = [each for each in compared.ops if each.op in ("in", "notin")]
        for each in operands:
            each.expr = _filtered(each.expr, "gendistill_whole")
        return compared

    def visit_Getitem(self, item: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(item)
        if isinstance(item.arg, nodes.Slice):
            item.node = _filtered(item.node, "gendistill_outer")
        return item

    def visit_Concat(self, joined: nodes.Concat) -> nodes.Filter:
        self.generic_visit(joined)
        return _filtered(nodes.List(joined.nodes, lineno=joined.lineno), "gendistill_concat")


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


@pass_context  # so that jinja does not call it beforehand, where all that it is given is constant
def _counted_steps(_, items: Iterable, constant: int = 0) -> Iterator:
    cost = STEP + constant
    for item in items:
        _spend(cost)
        yield item


@pass_context
def _concat(_, items: list) -> str:
    _spend(STEP + _size(items))
    return "".join(map(str, items))


@pass_context
def _counted_whole(_, value: Any) -> Any:
    _spend(STEP + (len(value) if type(value) is str else _size(value)))
    return value


@pass_context
def _counted_outer(_, value: Any) -> Any:
    _spend(STEP + _weight(value))
    return value


def _counted_filter(name: str, filter: Callable) -> Callable:
    passed = 1 if hasattr(filter, "jinja_pass_arg") else 0  # the environment or context that some are given first

    @wraps(filter)  # with the mark of those
    def counted(*args, **kwargs):
        values = [list(x) if isinstance(x, Iterator) else x for x in args[passed:]]
        if name not in LOOKING:
            _spend(sum(map(_size, values)))
        _spend_on_call(name, [*values, *kwargs.values()])
        return filter(*args[:passed], *values, **kwargs)

    return counted


def _counted_test(test: Callable) -> Callable:
    passed = 1 if hasattr(test, "jinja_pass_arg") else 0

    @wraps(test)
    def counted(*args):
        _spend(STEP + sum(map(_size, args[passed:])))
        return test(*args)

    return counted
