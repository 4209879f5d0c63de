"""Llama 3 and 3.1 to 3.3: `<|start_header_id|>role<|end_header_id|>`, blank line, text, end.

From 3.1 on, the system message carries two dates and tools are declared in the first question.
"""

from datetime import date

from .messages import Message, Tool, to_json
from .prompt import PromptBuilder
from .templates import BuiltinTemplate, RecommendedSampling
from .tokenizer import Tokenizer

_CALL_FORM = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\nRespond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)


class Llama3Template(BuiltinTemplate):
    """Llama 3: every message under its header, nothing added."""

    name = "llama3"
    source = (
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    )
    thinks = False
    tool_format: str | None = "llama3"
    recommended = RecommendedSampling(temperature=0.6, top_p=0.9)

    def _conversation(
        self, prompt: PromptBuilder, messages: list[Message], tools: list[Tool]
    ) -> None:
        prompt.bos()
        self._system(prompt, messages, tools)
        undeclared = list(tools)
        for message in messages:
            if message.role == "system":
                continue
            self._header(prompt, "ipython" if message.role == "tool" else message.role)
            if message.role == "user" and undeclared:
                self._declare(prompt, undeclared)
                undeclared = []
            self._said(prompt, message)
            prompt.trusted("<|eot_id|>")

    def _said(self, prompt: PromptBuilder, message: Message) -> None:
        if message.role == "tool":
            prompt.untrusted(to_json(message.content))
        elif message.role == "user":
            prompt.untrusted(message.content.strip())
        elif not self._answer(prompt, message) and message.tool_calls:
            prompt.trusted("\n" if message.content.strip() else "")
            self._calls(prompt, message)

    def _answer(self, prompt: PromptBuilder, message: Message) -> bool:
        said = Message(**{**vars(message), "content": message.content.strip()})
        return super()._answer(prompt, said)

    def _system(self, prompt: PromptBuilder, messages: list[Message], tools: list[Tool]) -> None:
        for message in messages:
            if message.role == "system":
                self._header(prompt, "system")
                prompt.untrusted(message.content.strip())
                prompt.trusted("<|eot_id|>")

    def _declare(self, prompt: PromptBuilder, tools: list[Tool]) -> None:
        prompt.trusted(_CALL_FORM)
        for tool in tools:
            prompt.untrusted(to_json(tool.declared, indent=4) + "\n\n")

    def _header(self, prompt: PromptBuilder, role: str) -> None:
        prompt.trusted(f"<|start_header_id|>{role}<|end_header_id|>\n\n")

    def _open_turn(self, prompt: PromptBuilder, messages: list[Message]) -> None:
        self._header(prompt, "assistant")


class Llama31Template(Llama3Template):
    """Llama 3.1 to 3.3. `today` None means the date of the rendering, as in 3.2 and 3.3."""

    name = "llama3.1"

    def __init__(self, tokenizer: Tokenizer, today: str | None = "26 Jul 2024") -> None:
        super().__init__(tokenizer)
        self._today = today

    def _system(self, prompt: PromptBuilder, messages: list[Message], tools: list[Tool]) -> None:
        self._header(prompt, "system")
        today = self._today or date.today().strftime("%d %b %Y")
        prompt.trusted("Environment: ipython\n" if tools else "")
        prompt.trusted(f"Cutting Knowledge Date: December 2023\nToday Date: {today}\n\n")
        systems = [m.content.strip() for m in messages if m.role == "system"]
        prompt.untrusted("\n\n".join(systems))
        prompt.trusted("<|eot_id|>")
