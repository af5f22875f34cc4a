"""The method: extraction, embedding, synthesis, resolution, evaluation, and the pipeline that knows them all."""
