FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY adapters adapters
COPY bench bench
COPY examples examples
RUN pip install --no-cache-dir --prefix=/install ".[fast]"

FROM python:3.13-slim
# faiss needs OpenMP's runtime, which the slim image leaves out
RUN apt-get update \
    && apt-get install --no-install-recommends -y libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 pld
COPY --from=build /install /usr/local
USER pld
WORKDIR /work
ENTRYPOINT ["pld"]
CMD ["--help"]
