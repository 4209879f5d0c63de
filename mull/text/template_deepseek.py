"""DeepSeek's chat forms: R1 and its distillations, V3, V3.1, and V2(-Lite) Chat.

Upstream's own templates never declare tools to R1, leave a single tool call unclosed and keep only
the last system message; here tools are declared, every call is closed and all system messages stay.
"""

from typing import ClassVar

from .messages import Message, Tool, to_json
from .prompt import PromptBuilder
from .templates import BuiltinTemplate, RecommendedSampling

_USER, _ASSISTANT, _END = "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEP, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_OUTPUTS, _OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
_OUTPUT, _OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"


class DeepSeekV3Template(BuiltinTemplate):
    """V3: `{bos}{system}<｜User｜>...<｜Assistant｜>...<｜end▁of▁sentence｜>`, no thinking."""

    source = (
        "{{ bos_token }}{{ messages | selectattr('role', 'equalto', 'system') "
        "| map(attribute='content') | join('\\n\\n') }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
    )
    name = "deepseek-v3"
    thinks = False
    tool_format = "deepseek"
    recommended = RecommendedSampling(temperature=0.3, top_p=0.95)

    def _conversation(
        self, prompt: PromptBuilder, messages: list[Message], tools: list[Tool]
    ) -> None:
        prompt.bos()
        systems = [m.content for m in messages if m.role == "system"]
        prompt.untrusted("\n\n".join(systems))
        if tools:
            prompt.trusted("\n\n" if systems else "")
            self._declare(prompt, tools)
        turns = [m for m in messages if m.role != "system"]
        for index, message in enumerate(turns):
            before = turns[index - 1].role if index else ""
            after = turns[index + 1].role if index + 1 < len(turns) else ""
            if message.role == "user":
                prompt.trusted(_USER)
                prompt.untrusted(message.content)
            elif message.role == "tool":
                self._output(prompt, message, first=before != "tool", last=after != "tool")
            else:
                self._assistant_turn(prompt, message, after_tool=before == "tool")

    def _assistant_turn(self, prompt: PromptBuilder, message: Message, after_tool: bool) -> None:
        if not after_tool:
            prompt.trusted(_ASSISTANT)
        if not self._answer(prompt, message):
            self._calls(prompt, message)
        prompt.trusted(_END)

    def _output(self, prompt: PromptBuilder, message: Message, first: bool, last: bool) -> None:
        prompt.trusted((_OUTPUTS if first else "\n") + _OUTPUT)
        prompt.untrusted(message.content)
        prompt.trusted(_OUTPUT_END + (_OUTPUTS_END if last else ""))

    def _declare(self, prompt: PromptBuilder, tools: list[Tool]) -> None:
        prompt.trusted("## Tools\nYou can call these functions to answer the user:\n")
        for tool in tools:
            prompt.untrusted(f"\n### {tool.name}\n{tool.description}\n")
            prompt.untrusted(f"Parameters (JSON schema): {to_json(tool.parameters)}\n")
        prompt.trusted(
            f"\nTo call one, write exactly:\n{_CALLS}{_CALL}function{_SEP}FUNCTION_NAME\n"
            f'```json\n{{"ARGUMENT": "VALUE"}}\n```{_CALL_END}{_CALLS_END}\n'
            f"Several calls follow one another, each between {_CALL} and {_CALL_END}."
        )

    def _open_turn(self, prompt: PromptBuilder, messages: list[Message]) -> None:
        if not messages or messages[-1].role != "tool":
            prompt.trusted(_ASSISTANT)


class DeepSeekR1Template(DeepSeekV3Template):
    """R1 and its six distillations: the prompt ends inside the thinking."""

    name = "deepseek-r1"
    thinks = True
    recommended = RecommendedSampling(temperature=0.6, top_p=0.95)

    def _open_thinking(
        self, prompt: PromptBuilder, messages: list[Message], thinking: bool | None
    ) -> bool:
        if thinking is False:
            self._thought(prompt, "", closed=True)
            return False
        # after a tool's output the model goes on without a marker, as it was trained
        if thinking is None and messages and messages[-1].role == "tool":
            return False
        prompt.trusted(self.think_open + "\n")
        return True


class DeepSeekR10528Template(DeepSeekR1Template):
    """R1-0528 and its distillation: the model opens its thinking itself."""

    name = "deepseek-r1-0528"

    def _open_thinking(
        self, prompt: PromptBuilder, messages: list[Message], thinking: bool | None
    ) -> bool:
        return thinking is not None and super()._open_thinking(prompt, messages, thinking)


class DeepSeekV31Template(DeepSeekV3Template):
    """V3.1: one model for both; every answer starts with `<think>` or `</think>`."""

    name = "deepseek-v3.1"
    tool_format = "deepseek-v3.1"
    recommended = RecommendedSampling(temperature=0.6, top_p=0.95)
    after_think_open: ClassVar[str] = ""

    def _assistant_turn(self, prompt: PromptBuilder, message: Message, after_tool: bool) -> None:
        if not after_tool:
            prompt.trusted(_ASSISTANT)
            if not message.reasoning and not self._has_thought(message):
                prompt.trusted(self.think_close)
        if not self._answer(prompt, message):
            self._calls(prompt, message)
        prompt.trusted(_END)

    def _has_thought(self, message: Message) -> bool:
        ids = message.token_ids or ()
        return message.in_progress and self._prompt_opened_thinking(list(ids))

    def _output(self, prompt: PromptBuilder, message: Message, first: bool, last: bool) -> None:
        prompt.trusted(_OUTPUT)
        prompt.untrusted(message.content)
        prompt.trusted(_OUTPUT_END)

    def _declare(self, prompt: PromptBuilder, tools: list[Tool]) -> None:
        prompt.trusted("## Tools\nYou have access to the following tools:\n")
        for tool in tools:
            prompt.untrusted(f"\n### {tool.name}\nDescription: {tool.description}\n")
            prompt.untrusted(f"\nParameters: {to_json(tool.parameters)}\n")
        prompt.trusted(
            "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
            f"{_CALLS}{_CALL}tool_call_name{_SEP}tool_call_arguments{_CALL_END}"
            f"{{additional_tool_calls}}{_CALLS_END}"
        )

    def _thought(self, prompt: PromptBuilder, reasoning: str, *, closed: bool) -> None:
        if reasoning:
            prompt.trusted(self.think_open)
            prompt.untrusted(reasoning)
        if closed:
            prompt.trusted(self.think_close)

    def _open_thinking(
        self, prompt: PromptBuilder, messages: list[Message], thinking: bool | None
    ) -> bool:
        if messages and messages[-1].role == "tool":
            return False
        prompt.trusted(self.think_open if thinking else self.think_close)
        return bool(thinking)


class DeepSeekV2Template(BuiltinTemplate):
    """V2-Lite Chat: `User: ...`, blank line, `Assistant: ...` between begin and end tokens."""

    name = "deepseek-v2"
    thinks = False
    tool_format = None
    recommended = RecommendedSampling(temperature=0.3, top_p=0.95)
    before_think_open: ClassVar[str] = " "

    def _conversation(
        self, prompt: PromptBuilder, messages: list[Message], tools: list[Tool]
    ) -> None:
        prompt.bos()
        if tools:
            prompt.untrusted(f"Functions: {to_json([t.declared for t in tools])}\n\n")
        for message in messages:
            if message.role == "assistant":
                prompt.trusted("Assistant: ")
                self._answer(prompt, message)
                prompt.trusted(_END)
            else:
                prompt.trusted("" if message.role == "system" else "User: ")
                prompt.untrusted(message.content)
                prompt.trusted("\n\n")

    def _open_turn(self, prompt: PromptBuilder, messages: list[Message]) -> None:
        prompt.trusted("Assistant:")

    def _continue(self, prompt: PromptBuilder, started: Message) -> tuple[list[int], bool]:
        prompt.trusted(" ")
        return super()._continue(prompt, started)
