"""`vllm serve` as a child: flags that fit the job, waiting, causes of failure, and nothing left behind."""
