"""The evaluator: what splicing SAEs into a language model costs over a distribution of text."""

from .documents import Document, load_documents
from .errors import InputError
from .evaluator import evaluate
from .report import Report, schema

__all__ = ["Document", "InputError", "Report", "evaluate", "load_documents", "schema"]
