"""ChatML (`<|im_start|>role ... <|im_end|>`) and the families that speak it: SmolLM2, Qwen.

They differ in the system message that stands in for a missing one, and in thinking: Qwen3 thinks
unless an empty thought is put in its mouth. Tools are declared and called in the Hermes form.
"""

from .messages import Message, Tool, to_json
from .prompt import PromptBuilder
from .templates import BuiltinTemplate, RecommendedSampling
from .tokenizer import Tokenizer

_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class ChatMLTemplate(BuiltinTemplate):
    """Plain ChatML. `default_system` is said where the conversation has no system message."""

    name = "chatml"
    source = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    thinks = False
    tool_format = "hermes"
    default_system: str | None = None
    default_system_with_tools: str | None = None

    def __init__(self, tokenizer: Tokenizer, default_system: str | None = None) -> None:
        super().__init__(tokenizer)
        if default_system is not None:
            self.default_system = self.default_system_with_tools = default_system

    def _conversation(
        self, prompt: PromptBuilder, messages: list[Message], tools: list[Tool]
    ) -> None:
        first_is_system = bool(messages) and messages[0].role == "system"
        self._system(prompt, messages[0].content if first_is_system else None, tools)
        for index in range(int(first_is_system), len(messages)):
            message = messages[index]
            before = messages[index - 1].role if index else ""
            after = messages[index + 1].role if index + 1 < len(messages) else ""
            if message.role == "tool":
                self._output(prompt, message, first=before != "tool", last=after != "tool")
                continue
            prompt.trusted(f"<|im_start|>{message.role}\n")
            if message.role != "assistant":
                prompt.untrusted(message.content)
            elif not self._answer_in_turn(prompt, message, is_last=not after):
                self._calls(prompt, message)
            prompt.trusted("<|im_end|>\n")

    def _system(self, prompt: PromptBuilder, said: str | None, tools: list[Tool]) -> None:
        default = self.default_system_with_tools if tools else self.default_system
        if said is None and default is None and not tools:
            return
        prompt.trusted("<|im_start|>system\n")
        if said is None:
            prompt.trusted(default or "")
        else:
            prompt.untrusted(said)
        if tools:
            prompt.trusted(("\n\n" if said is not None or default else "") + _TOOLS_HEAD)
            for tool in tools:
                prompt.untrusted("\n" + to_json(tool.declared))
            prompt.trusted(_TOOLS_TAIL)
        prompt.trusted("<|im_end|>\n")

    def _answer_in_turn(self, prompt: PromptBuilder, message: Message, is_last: bool) -> bool:
        return self._answer(prompt, message)

    def _calls(self, prompt: PromptBuilder, message: Message) -> None:
        prompt.trusted("\n" if message.content and message.tool_calls else "")
        super()._calls(prompt, message)

    def _output(self, prompt: PromptBuilder, message: Message, first: bool, last: bool) -> None:
        prompt.trusted(("<|im_start|>user" if first else "") + "\n<tool_response>\n")
        prompt.untrusted(message.content)
        prompt.trusted("\n</tool_response>" + ("<|im_end|>\n" if last else ""))

    def _open_turn(self, prompt: PromptBuilder, messages: list[Message]) -> None:
        prompt.trusted("<|im_start|>assistant\n")


class SmolLM2Template(ChatMLTemplate):
    """SmolLM2-Instruct."""

    name = "smollm2"
    default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    default_system_with_tools = default_system
    recommended = RecommendedSampling(temperature=0.2, top_p=0.9)


class Qwen25Template(ChatMLTemplate):
    """Qwen2.5-Instruct (and, with its own default system message, Qwen2)."""

    name = "qwen2.5"
    default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    default_system_with_tools = default_system
    recommended = RecommendedSampling(temperature=0.7, top_p=0.8)


class Qwen3Template(ChatMLTemplate):
    """Qwen3: thinks by itself; an empty thought switches it off for one answer."""

    name = "qwen3"
    thinks = True
    recommended = RecommendedSampling(temperature=0.6, top_p=0.95)

    def _answer_in_turn(self, prompt: PromptBuilder, message: Message, is_last: bool) -> bool:
        without_ids = message.token_ids is None and not message.reasoning
        if is_last and message.in_progress and without_ids:
            self._thought(prompt, "", closed=True)
        return self._answer(prompt, message)

    def _open_thinking(
        self, prompt: PromptBuilder, messages: list[Message], thinking: bool | None
    ) -> bool:
        if thinking is False:
            self._thought(prompt, "", closed=True)
        return False


class QwenThinkingTemplate(Qwen3Template):
    """Models of this form that always think (Qwen3-2507-Thinking, QwQ): the prompt opens it."""

    name = "qwen-thinking"

    def _open_thinking(
        self, prompt: PromptBuilder, messages: list[Message], thinking: bool | None
    ) -> bool:
        if thinking is False:
            return super()._open_thinking(prompt, messages, thinking)
        prompt.trusted(self.think_open + "\n")
        return True
