"""The Jinja environment that chat templates are written for: transformers', with bounded work.

A loop, a filter, a test, a call, a comparison and an operator each count what they handle (see
`work_limit`); in what they compute they are Jinja's own.
"""

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes, pass_context, pass_environment
from jinja2.environment import Environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_sum
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hybrid.conversation.work_limit import (
    OPERATIONS,
    TemplateWorkError,
    charged,
    charged_once,
    check_arguments,
    check_operation,
    counted,
    guarded,
    spend,
)

_EACH, _CHARGED, _ONCE, _SPEND = "hybrid each", "hybrid charged", "hybrid once", "hybrid spend"
_WIDEST_INDENT = 64
_WIDE_TIME = re.compile(r"%[^A-Za-z%]*\d{3}")
_UNBOUNDED = ("urlize", "striptags", "xmlattr", "pprint", "wordwrap")  # no chat template has them


class RefusedConversation(Exception):
    """The template's own `raise_exception`: the conversation is not one that it allows."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates; work is counted inside `limited_work`."""

    intercepted_binops = frozenset(OPERATIONS)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants would be worked out while compiling
            extensions=[loopcontrols, GenerationBlocks],
            finalize=_finalize,
        )
        self.filters |= {"tojson": _to_json, "sum": _sum}
        for name in _UNBOUNDED:
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _strftime_now,
            "namespace": _TemplateNamespace,
        }
        for table in (self.filters, self.tests):
            for name, function in [*table.items()]:
                table[name] = guarded(name, function)
        self.filters |= {_EACH: counted, _CHARGED: charged, _ONCE: charged_once, _SPEND: spend}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _count_work(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, counted."""
        check_operation(operator, left, right)
        return charged(OPERATIONS[operator](left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Any call, counted."""
        if isinstance(__obj, Macro):
            spend(1)
        else:
            method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
            name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
            own = [owner] if isinstance(owner, str | list | tuple | dict) else []
            check_arguments(name, [*own, *args, *kwargs.values()])
        return charged_once(super().call(__context, __obj, *args, **kwargs))


class GenerationBlocks(Extension):
    """`{% generation %}` marks what a model has written, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja copies it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The block's body, in a scope of its own as a call block has."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateNamespace(Namespace):
    """Jinja's namespace, without attributes that begin with an underscore as in transformers."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *given = arguments
        values = dict(*given, **named)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def _count_work(tree: nodes.Template) -> None:
    """Wrap what may grow or repeat, in place."""
    _wrap(tree)
    for block in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
        assert isinstance(block, nodes.For | nodes.Macro | nodes.CallBlock)
        if isinstance(block, nodes.For):
            block.iter = _filtered(block.iter, _EACH)
        own = nodes.Const(1 + _own_text(block.body), lineno=block.lineno)
        block.body.insert(0, nodes.ExprStmt(_filtered(own, _SPEND), lineno=block.lineno))


def _wrap(node: nodes.Node) -> None:
    """Charge for operands of comparisons, joined text, slices and collections."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, field, [_charge(node, one) for one in value])
        elif isinstance(value, nodes.Node):
            setattr(node, field, _charge(node, value))


def _charge(parent: nodes.Node, value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _wrap(value)
    if not isinstance(value, nodes.Expr) or getattr(value, "ctx", "load") != "load":
        return value
    if isinstance(parent, nodes.Compare | nodes.Operand | nodes.Concat):
        return _filtered(value, _CHARGED)
    is_slice = isinstance(value, nodes.Getitem) and isinstance(value.arg, nodes.Slice)
    grows = isinstance(value, nodes.Concat | nodes.List | nodes.Tuple | nodes.Dict)
    return _filtered(value, _ONCE) if is_slice or grows else value


def _filtered(value: Any, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno or 1)


def _own_text(body: list[nodes.Node]) -> int:
    """Characters of the template's own text in a block, which each turn of it writes."""
    return sum(len(data.data) for node in body for data in _data(node))


def _data(node: nodes.Node) -> list[nodes.TemplateData]:
    own = [node] if isinstance(node, nodes.TemplateData) else []
    return [*own, *node.find_all(nodes.TemplateData)]


def _refuse(message: str) -> NoReturn:
    """Templates call this on conversations that they do not allow."""
    raise RefusedConversation(message)


def _strftime_now(format: str) -> str:
    if _WIDE_TIME.search(format):
        raise TemplateWorkError("a date asks for a width of more than two digits")
    return datetime.now().strftime(format)


@pass_context  # otherwise constants would be written while compiling, and not counted
def _finalize(context: Context, value: Any) -> Any:
    return charged(value)


@pass_environment
def _sum(
    environment: Environment,
    iterable: Iterable[Any],
    attribute: str | int | None = None,
    start: float = 0,
) -> Any:
    if not isinstance(start, int | float):
        raise TemplateWorkError("sum adds up numbers only")
    return do_sum(environment, iterable, attribute, start)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON with transformers' options; Jinja's own filter would escape it for HTML."""
    indentation = len(indent) if isinstance(indent, str) else indent or 0
    if indentation > _WIDEST_INDENT:
        raise TemplateWorkError(f"tojson indents by {indentation}, more than {_WIDEST_INDENT}")
    charged([value] * (1 + indentation))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def compile_template(source: str) -> Template:
    """The template of its text; raises whatever Jinja or Python find wrong with it."""
    return ChatEnvironment().from_string(source)
