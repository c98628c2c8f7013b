# The control plane: API, worker and migrations are one image with different commands.
# 3.11 is the version that requirements.lock was made and tested with.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
RUN python -m venv /opt/deployerp
ENV PATH=/opt/deployerp/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Before the code: a change to it does not install everything again.
COPY requirements.lock requirements-build.lock ./
RUN pip install --require-hashes --requirement requirements.lock --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY deployerp deployerp
RUN pip install --no-deps --no-build-isolation .

FROM ${PYTHON}
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/deployerp deployerp
COPY --from=build /opt/deployerp /opt/deployerp
ENV PATH=/opt/deployerp/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/deployerp
USER deployerp
EXPOSE 8000
ENTRYPOINT ["deployerp"]
CMD ["--help"]
