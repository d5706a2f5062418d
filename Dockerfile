# The image of a cluster's nodes: the wheel with all extras, so that a head accepts jobs and nodes read every data source.
#
#   docker build --tag registry.example/vadtune:0.2.0 .
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY search_spaces search_spaces
COPY vadtune vadtune
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY --from=build /wheels /wheels
# wget: KubeRay's health checks use it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[all]" \
    && useradd --create-home --uid 1000 ray
USER 1000
WORKDIR /home/ray
CMD ["vadtune", "--help"]
