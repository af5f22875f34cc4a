"""The method: extraction, embedding, synthesis, resolution, evaluation, and the pipeline of them all."""
