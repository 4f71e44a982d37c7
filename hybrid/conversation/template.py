"""A model folder's chat template: where it may be written, and rendering within limits."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template

from hybrid.conversation.environment import RefusedConversation, compile_template
from hybrid.conversation.work_limit import LEAST_WORK, WORK_PER_CHARACTER, limited_work
from hybrid.errors import CheckpointError, HybridError, RequestError
from hybrid.gemma.fields import Fields
from hybrid.types import Message

FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"
DEFAULT = "default"
_LONGEST = 1_000_000  # characters of a template
_CONTINUE = "\ufdd2continue\ufdd2 "  # its space shows whether the template trims what it is given
# transformers' GemmaTokenizer has these where a folder names none.
_GEMMA = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}


class ChatTemplate:
    """One template and the special tokens that it may name, from `file`."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, file: str = FILE
    ) -> None:
        self.source, self.special_tokens, self.file = source, special_tokens or {}, file
        if len(source) > _LONGEST:
            raise CheckpointError(file, f"a chat template of more than {_LONGEST} characters")
        try:
            with limited_work(LEAST_WORK):
                self._compiled = _compile(source)
        except Exception as problem:  # Jinja's, or Python's on what Jinja made
            message = f"not a Jinja template that can be used: {_first_line(problem)}"
            raise CheckpointError(file, message) from None

    @classmethod
    def from_directory(cls, directory: Path) -> "ChatTemplate":
        """The folder's default template; CheckpointError if there is none or it is broken.

        As transformers looks for it: files of templates come before tokenizer_config.json.
        """
        config = Fields.read(directory / "tokenizer_config.json")
        sources = _files(directory)
        file = directory / FILE
        if not sources:
            sources = _configured(config)
            file = config.file if sources else file
        if not sources:
            message = "missing, and tokenizer_config.json has no chat_template"
            raise CheckpointError(str(file), message)
        if DEFAULT not in sources:
            message = f"no template is called {DEFAULT!r}, only {', '.join(sorted(sources))}"
            raise CheckpointError(str(file), message)
        return cls(sources[DEFAULT], read_special_tokens(directory), str(file))

    @property
    def sha256(self) -> str:
        """Of the template's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def revision(self) -> str:
        """The commit of the hub that the file is of, "" for a file of another folder."""
        commit = re.search(r"/snapshots/([0-9a-f]{40})/", Path(self.file).as_posix())
        return commit[1] if commit else ""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text, up to where the answer begins.

        A conversation that ends with the assistant's message is continued. Raises RequestError for
        one that the template refuses, CheckpointError for a template that fails.
        """
        turns = [self._turn(message) for message in messages]
        if not messages or messages[-1].role != "assistant":
            return self._run(turns, add_generation_prompt=True)
        begun = _append(turns[-1], _CONTINUE)
        text = self._run(turns, add_generation_prompt=False)
        before, found, after = text.rpartition(_CONTINUE.strip())
        if not found or begun.strip() not in text:
            allowed = "the chat template changes or leaves out this message: it cannot be continued"
            raise RequestError("messages", begun[:60], allowed)
        return before if after.startswith(" ") else before.rstrip()

    def _turn(self, message: Message) -> dict[str, Any]:
        content: Any = message.content
        if message.parts and self._takes_parts:
            content = [{"type": "text", "text": part} for part in message.parts]
        return {"role": message.role, "content": content}

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether it writes a content in parts as text; others get the parts as one text."""
        content = [{"type": "text", "text": "some text"}]
        try:
            text = self._run([{"role": "user", "content": content}], add_generation_prompt=True)
        except HybridError:
            return False
        return "some text" in text and "'text'" not in text and '"text"' not in text

    def _run(self, turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        length = sum(len(str(value)) for turn in turns for value in turn.values())
        try:
            with limited_work(LEAST_WORK + WORK_PER_CHARACTER * length):
                return self._compiled.render(
                    messages=turns,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self.special_tokens,
                )
        except RefusedConversation as refusal:
            roles = [turn["role"] for turn in turns]
            allowed = f"the chat template says: {refusal}"
            raise RequestError("messages", roles, allowed) from None
        except Exception as problem:  # whatever a template can be made to raise
            self._failed(problem)

    def _failed(self, problem: Exception) -> NoReturn:
        raise CheckpointError(self.file, f"the chat template {_first_line(problem)}") from None


@lru_cache(maxsize=16)
def _compile(source: str) -> Template:
    return compile_template(source)


def _first_line(problem: Exception) -> str:
    text = (str(problem).strip() or "fails").splitlines()[0][:200]
    name = type(problem).__name__
    return text if name == "TemplateWorkError" else f"raises {name}: {text}"


def _append(turn: dict[str, Any], text: str) -> str:
    """Add text to the end of a message; returns the text or the part that it was added to."""
    content = turn["content"]
    if isinstance(content, str):
        turn["content"] = content + text
        return content
    before: str = content[-1]["text"]
    content[-1]["text"] = before + text
    return before


def _files(directory: Path) -> dict[str, str]:
    """Templates in files of their own, by name."""
    files = {DEFAULT: directory / FILE} if (directory / FILE).exists() else {}
    if (directory / FOLDER).is_dir():
        files |= {file.stem: file for file in sorted((directory / FOLDER).glob("*.jinja"))}
    sources = {}
    for name, file in files.items():
        if not file.is_file():
            raise CheckpointError(str(file), "not a file")
        try:
            sources[name] = file.read_text("utf-8")
        except (OSError, ValueError) as problem:
            raise CheckpointError(str(file), f"not readable: {problem}") from None
    return sources


def _configured(config: Fields) -> dict[str, str]:
    """Templates in tokenizer_config.json: one, or a list of named ones."""
    given = config.get("chat_template")
    if given is None:
        return {}
    if isinstance(given, str):
        return {DEFAULT: given}
    pairs = [*given.items()] if isinstance(given, dict) else []
    if isinstance(given, list) and all(isinstance(one, dict) for one in given):
        pairs = [(one.get("name"), one.get("template")) for one in given]
    if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
        message = "is neither a template nor a list of objects with name and template"
        raise config.error("chat_template", message)
    return dict(pairs)


def read_special_tokens(directory: Path) -> dict[str, str]:
    """What a template's `bos_token`, `eos_token` and the like stand for, from every file with them.

    As transformers reads them: special_tokens_map.json counts where tokenizer_config.json does not
    list its added tokens.
    """
    config = Fields.read(directory / "tokenizer_config.json")
    values = dict(config.values)
    older = directory / "special_tokens_map.json"
    if older.is_file() and "added_tokens_decoder" not in values:
        values |= Fields.read(older).values
    is_gemma = re.match(r"Gemma\w*Tokenizer", str(config.get("tokenizer_class") or ""))
    named = {**_GEMMA, **_texts(values)} if is_gemma else _texts(values)
    extra = values.get("extra_special_tokens")
    named |= _texts(extra, any_name=True) if isinstance(extra, dict) else {}
    return named


def _texts(values: Mapping[str, Any], any_name: bool = False) -> dict[str, str]:
    tokens = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in values.items()
        if any_name or name.endswith("_token")
    }
    return {name: text for name, text in tokens.items() if isinstance(text, str)}
