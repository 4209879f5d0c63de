"""Text in and out: tokenizers, chat templates, and the parser of what a model streams."""

from .answer_form import answer_form
from .gguf_tokenizer import gguf_tokenizer
from .hf_tokenizer import hf_tokenizer_files
from .prompt import RenderedPrompt
from .stream import Piece, StreamDecoder, StreamParser, sentence_end
from .templates import ChatTemplate, RecommendedSampling
from .tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Piece",
    "RecommendedSampling",
    "RenderedPrompt",
    "StreamDecoder",
    "StreamParser",
    "Tokenizer",
    "answer_form",
    "gguf_tokenizer",
    "hf_tokenizer_files",
    "sentence_end",
]
