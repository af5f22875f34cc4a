FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY adapters adapters
COPY bench bench
COPY examples examples
# what is installed is this folder: it has no version to pin
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --prefix=/install ".[fast]"

FROM python:3.13-slim-bookworm
RUN useradd --create-home --uid 1000 pld \
    && mkdir --mode=0700 /home/pld/.cache /work \
    && chown 1000:1000 /home/pld/.cache /work
COPY --from=build /install /usr/local
# compiled loops: the packages belong to root, so numba would have to compile them in every container
ENV NUMBA_CACHE_DIR=/home/pld/.cache/numba
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["pld"]
CMD ["--help"]
