"""A student behind a real vLLM server: what prompts, their cache and chains of thought cost."""

from bench.student.measuring import PARTS, Setting, measure_student

__all__ = ["PARTS", "Setting", "measure_student"]
