"""The embedded default: keyword-rule models that need no key, account or GPU.

Teacher and embedder know the training corpus through a `LocalFit`; the student knows nothing but the prompt.
"""

from adapters.local.embedder import LocalEmbedder
from adapters.local.fit import FIT_FILE, LocalFit, fit_local, load_local
from adapters.local.student import LocalStudent
from adapters.local.teacher import LocalTeacher

__all__ = ["FIT_FILE", "LocalEmbedder", "LocalFit", "LocalStudent", "LocalTeacher", "fit_local", "load_local"]
