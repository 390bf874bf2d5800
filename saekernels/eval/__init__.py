"""The evaluator: what splicing SAEs into a language model costs over a distribution of text."""

from saekernels.errors import InputError
from saekernels.eval.evaluate import evaluate
from saekernels.eval.report.data import schema
from saekernels.eval.report.replacement.schema import replacement_schema
from saekernels.eval.report.report import Report
from saekernels.eval.studies.crosslayer.measure import evaluate_replacement
from saekernels.eval.text.documents import Document
from saekernels.eval.text.sources import load_documents

__all__ = [
    "Document",
    "InputError",
    "Report",
    "evaluate",
    "evaluate_replacement",
    "load_documents",
    "replacement_schema",
    "schema",
]
