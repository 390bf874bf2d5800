"""The evaluator: what splicing SAEs into a language model costs over a distribution of text."""

from saekernels.eval.documents import Document, load_documents
from saekernels.eval.errors import InputError
from saekernels.eval.evaluator import evaluate
from saekernels.eval.report import Report, schema

__all__ = ["Document", "InputError", "Report", "evaluate", "load_documents", "schema"]
