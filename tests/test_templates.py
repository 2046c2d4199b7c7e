"""Chat templates, which come with a model, write what transformers has them write, within limits of work and size."""

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import gendistill
from gendistill import templates
from gendistill.errors import UserError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>\n</think>\n\nhello"}]
GROWS = "{% set n = namespace(x='x' * 1000) %}{% for a in range(60) %}STEP{% endfor %}"
HOSTILE = {
    "loops in loops": "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "a loop that calls itself": "{% set r = range(100000) %}{% for a in r recursive %}"
    "{% if loop.depth0 < 3 %}{{ loop(r) }}{% endif %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a range": "{% for a in range(10 ** 10) %}{% endfor %}",
    "a product of constants": "{{ 'x' * 10 ** 10 }}",
    "a power": "{{ 10 ** (10 ** 8) }}",
    "much output": "{% for a in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    "much text of its own": "{% for a in range(100000) %}" + 50_000 * "y" + "{% endfor %}",
    "a filter of a constant": "{% for a in range(100000) %}{{ 'x' | center(1000000) }}{% endfor %}",
    "doubled by ~": GROWS.replace("STEP", "{% set n.x = n.x ~ n.x %}"),
    "doubled by +": GROWS.replace("STEP", "{% set n.x = n.x + n.x %}"),
    "doubled by a block": GROWS.replace("STEP", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "a list of itself": GROWS.replace("STEP", "{% set n.x = [n.x, n.x] %}") + "{{ n.x }}",
    "lists of themselves compared": GROWS.replace("STEP", "{% set n.x = [n.x] * 2 %}")
    + "{{ n.x == [1] or n.x in n.x }}",
    "replace": GROWS.replace("STEP", "{% set n.x = n.x.replace('x', n.x) %}"),
    "the filter replace": GROWS.replace("STEP", "{% set n.x = n.x | replace('x', n.x) %}"),
    "join": "{{ ('x' * 100000).join(range(100000) | map('string') | list) }}",
    "the filter join": "{{ range(100000) | join('x' * 100000) }}",
    "one text many times": "{{ (['x' * 1000000] * 1000000) | tojson }}",
    "written out": "{{ (['x' * 1000000] * 1000000) | string }}",
    "ljust": "{{ 'x'.ljust(10 ** 10) }}",
    "a width": "{{ '%10000000000d' % 1 }}",
    "a width that is given": "{{ '%*d' % (10 ** 10, 1) }}",
    "a width of format": "{{ '{:10000000000}'.format(1) }}",
    "indent": "{{ ('a\n' * 1000000) | indent(1000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'x' * 1000000}) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "sorted again and again": "{% set r = range(100000) | list %}{% for i in r %}{% set s = r | sort %}{% endfor %}",
    "searched in a loop": "{% set r = range(9999) | list %}{% for i in r %}{% if i in r %}{% endif %}{% endfor %}",
    "cut again and again": "{% set s = 'x' * 9999999 %}{% for i in range(9999) %}{% set t = s[1:] %}{% endfor %}",
    "sums of lists": "{{ ([[1] * 10000] * 10000) | sum(start=[]) }}",
}
SOUND = {
    "ChatML": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "thoughts of earlier turns dropped": "{%- set n = namespace(last=messages | length - 1) %}{%- for m in messages %}"
    "{%- if m.role == 'assistant' and '</think>' in m.content and not loop.last %}"
    "{{- m.content.split('</think>')[-1].lstrip('\n') ~ eos_token }}"
    "{%- else %}{{- '<|' + m['role'] + '|>' + m.content | trim }}{%- endif %}{%- endfor %}"
    "{%- if messages[0].role is eq('user') %}{{ messages[1:] | map(attribute='role') | join(', ') }}{% endif %}",
    "macros and loops": "{% macro turn(m, i) %}{{ '%d. %s' % (i, m.content | upper) }}\n{% endmacro %}"
    "{% for m in messages[::-1] if m.role != 'system' %}{{ turn(m, loop.index) }}{{ loop.revindex * 2 }}"
    "{{ loop.cycle('a', 'b') }}{% if loop.last %}{{ {'n': loop.length} | tojson }}{% endif %}{% endfor %}",
    "marked": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


def of(source):
    """As much of a tokenizer as a template needs."""
    return SimpleNamespace(get_chat_template=lambda: source, special_tokens_map={"eos_token": "<|im_end|>"})


@pytest.mark.parametrize("what", SOUND)
@pytest.mark.parametrize("opened", [True, False])
def test_a_template_writes_what_transformers_has_it_write(tokenizer, monkeypatch, what, opened):
    monkeypatch.setattr(tokenizer, "chat_template", SOUND[what])
    options = dict(add_generation_prompt=opened, enable_thinking=False)
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, **options)
    assert expected
    assert templates.render(tokenizer, CHAT, **options) == expected


@pytest.fixture
def a_sixteenth(monkeypatch):
    """Of what is allowed, for tests that use it up."""
    monkeypatch.setattr(templates, "MOST_WORK", templates.MOST_WORK // 16)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_template_that_would_do_too_much_is_stopped(what, a_sixteenth):
    with pytest.raises(UserError, match="the chat template does too much for one conversation"):
        templates.render(of(HOSTILE[what]), CHAT)


def test_endless_work_ends_soon():
    began = time.process_time()
    with pytest.raises(UserError, match="more than 1,048,576 steps or 268,435,456 characters"):
        templates.render(of(HOSTILE["loops in loops"]), CHAT)
    assert time.process_time() - began < 10


def test_limits_are_of_one_rendering_whatever_others_do(a_sixteenth):
    """A quarter of what is allowed, eight times one after the other and at once."""
    source = of("{% for a in range(16) %}{% for b in range(1000) %}{% endfor %}{% endfor %}.")
    assert [templates.render(source, CHAT) for _ in range(8)] == ["."] * 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: templates.render(source, CHAT), range(8))) == ["."] * 8


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{% for %}", "the chat template is damaged"),
        ("{{ messages.nothing.at_all }}", "refuses this conversation"),
        ("{{ 1 + 'x' }}", "fails: TypeError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation"),
    ],
)
def test_whatever_a_template_raises_is_one_clear_error(source, told):
    with pytest.raises(UserError, match=told):
        templates.render(of(source), CHAT)


def test_templates_are_rendered_here_only():
    source = Path(gendistill.__file__).parent
    names = ("apply_chat_template", "render_jinja_template", "_compile_jinja_template")
    used = {
        path.name
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)) in names
    }
    assert used == {"templates.py"}
