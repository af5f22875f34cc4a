"""What is kept on disk: labelled data sets and rows to classify, the run directory, the response cache."""

from engine.store.cache import ResponseStore, RunJournal
from engine.store.datasets import Dataset, load_dataset
from engine.store.fields import TextColumns
from engine.store.files import InputFile, fingerprint
from engine.store.labelled import Rejected
from engine.store.rows import RowBatch, RowReader
from engine.store.rundir import RunDirectory
from engine.store.splits import Duplicates

__all__ = [
    "Dataset",
    "Duplicates",
    "InputFile",
    "Rejected",
    "ResponseStore",
    "RowBatch",
    "RowReader",
    "RunDirectory",
    "RunJournal",
    "TextColumns",
    "fingerprint",
    "load_dataset",
]
