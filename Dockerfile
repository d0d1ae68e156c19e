# Everything that a run needs but the weights and the data: docker build --tag ogpsa . ; slurm/README.md has Apptainer's
# line. The CUDA libraries come with torch's wheels, the driver from the host.
FROM python:3.11-slim-bookworm

# git: a run records its revision. gcc: Triton compiles the projection's kernels on the GPU. Debian keeps one version of
# each, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev \
    && rm --recursive --force /var/lib/apt/lists/*

WORKDIR /ogpsa
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir --requirement requirements.lock
COPY . .
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && git config --system --add safe.directory /ogpsa

ENV PYTHONPATH=/ogpsa PYTHONUNBUFFERED=1
# Runs, caches and data are mounted here.
WORKDIR /work
ENTRYPOINT ["python"]
CMD ["/ogpsa/train.py", "--help"]
