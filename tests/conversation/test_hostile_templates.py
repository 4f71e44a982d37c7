"""Chat templates that loop, grow or fail end at once, with the file's name."""

import pytest

from hybrid.conversation.template import ChatTemplate
from hybrid.errors import CheckpointError, RequestError
from hybrid.types import Message

TURN = "{% for i in range(90000) %}"
DOUBLED = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = MORE %}{% endfor %}"
)


def doubled(start: str, more: str) -> str:
    return DOUBLED.replace("START", start).replace("MORE", more)


NESTED = doubled("[]", "[ns.x, ns.x]")
LOOPS = [
    TURN * 3 + "{% endfor %}" * 3,
    TURN * 3 + "x" + "{% endfor %}" * 3,
    "{% for a in messages * 999 %}" * 4 + "{% endfor %}" * 4,
    TURN + TURN + "{% if i in messages[0].content %}{% endif %}" + "{% endfor %}" * 2,
    TURN + "{% set x = messages[0].content * 9000 %}{% if x == x ~ 1 %}{% endif %}{% endfor %}",
    TURN + "{% set x = (messages[0].content * 900)[1:] %}{% endfor %}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% for a in range(90000) if a > 99999 %}{% endfor %}" * 99,
]
GROWS = [
    doubled("'ab'", "ns.x ~ ns.x"),
    doubled("'ab'", "ns.x + ns.x"),
    doubled("[1]", "ns.x + ns.x"),
    NESTED + "{{ ns.x }}",
    NESTED + "{{ ns.x | tojson }}",
    NESTED + "{{ ns.x ~ '' }}{{ ns.x == [] }}",
    "{{ 'x' * 9999999999 }}",
    "{{ [1] * 9999999999 }}",
    "{{ 9999999999 * 'x' }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x' | center(9999999999) }}",
    "{{ 'x'.center(9999999999) }}{{ 'x'.ljust(9999999999) }}",
    "{{ 'x'.zfill(9999999999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 9999999999) }}",
    "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}",
    "{{ ('b' * 9999).join(['a'] * 9999) }}",
    "{{ (['a'] * 9999) | join('b' * 9999) }}",
    "{{ ('a\n' * 9999) | indent(9999) }}",
    "{{ ('\t' * 9999).expandtabs(9999) }}",
    "{{ messages | tojson(indent=9999999999) }}",
    "{{ [[]] | batch(9999999999, 'x') | list }}",
    "{{ ([['x'] * 99] * 9999) | sum(start=[]) }}",
    "{{ strftime_now('%9999999999Y') }}",
    "{{ lipsum(n=9999) }}",
    "{{ ''.join(range(90000) | map('string')) * 999 }}",
    "{% set x %}{% for i in range(90000) %}"
    + "y" * 999
    + "{% endfor %}{% endset %}{{ x | length }}",
    "{% macro m() %}" + "y" * 9999 + "{% endmacro %}" + TURN + "{% set x = m() %}{% endfor %}",
    "{% for a in [messages] * 9999 recursive %}" + "y" * 9999 + "{{ loop(a) }}{% endfor %}",
    "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60,
    "{{ 'aaaaaaaaaa' " + "| replace('a', 'aaaaaaaaaa')" * 12 + " }}",
]
FAILS = [
    "{{ 1 / 0 }}",
    "{{ messages[9].content }}",
    "{{ messages.x.y }}",
    "{{ range(99999999) }}",
    "{{ missing() }}",
    "{% include 'other' %}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
    "{{ messages[0].content | int / '' }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{{ [1, 'a'] | sort }}",
    "{{ 'a' | fromjson }}",
]


def outcome(source: str) -> str:
    template = ChatTemplate(source, file="the/chat_template.jinja")
    return template.render([Message("user", "hello")])


@pytest.mark.parametrize("source", [*LOOPS, *GROWS, *FAILS])
def test_hostile_templates(source: str) -> None:
    with pytest.raises(CheckpointError, match="the/chat_template"):
        outcome(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% if {",
        "{{ 'a' | nofilter }}",
        "{% nonsense %}",
        "{% for x in y %}",
        "{% if a %}" * 2000 + "{% endif %}" * 2000,
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{{ " + "-" * 100_000 + "1 }}",
        "x" * 2_000_000,
        "{% extends 'x' %}{% block a %}",
    ],
)
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(CheckpointError, match="the/chat_template"):
        outcome(source)


def test_a_refusal_is_about_the_messages() -> None:
    with pytest.raises(RequestError, match="only two turns") as raised:
        outcome("{{ raise_exception('only two turns') }}")
    assert raised.value.field == "messages"


def test_a_long_conversation_may_take_more_work() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if 'z' in m.content %}z{% endif %}{{ m.content | trim }}"
        "{% for n in messages %}{% if n.role == 'user' %}{% endif %}{% endfor %}{% endfor %}"
    )
    turns = [Message("user", "x" * 1000)] * 300
    assert template.render(turns) == "x" * 300_000
