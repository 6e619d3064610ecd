# A server of images and answers on port 8000.
#
#   docker build -t flashjanus .                                      kernels for CPUs
#   docker build -t flashjanus:cuda --build-arg DEVICE=cuda .         and for GPUs
#   docker run -p 8000:8000 -v janus:/models flashjanus --model deepseek-ai/JanusFlow-1.3B
#   docker run --gpus all -p 8000:8000 -v janus:/models flashjanus:cuda --device cuda --model ...
#
# TORCH: what pip is given to install torch, options included; the default is the index's build, which on Linux brings
# CUDA along. EXTRAS: of pyproject.toml. CUDA_ARCHITECTURES: of nvcc, for example 90-real; all by default.

ARG DEVICE=cpu
ARG PYTHON=python:3.12-slim-trixie
ARG CUDA=nvidia/cuda:12.9.1-devel-ubuntu24.04

FROM ${PYTHON} AS tools-cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV FLASHJANUS_CUDA=off

FROM ${CUDA} AS tools-cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV FLASHJANUS_CUDA=on

FROM tools-${DEVICE} AS wheel
ARG CUDA_ARCHITECTURES=
WORKDIR /source
COPY CMakeLists.txt LICENSE MANIFEST.in README.md pyproject.toml setup.py ./
COPY csrc csrc
COPY engine engine
COPY triton_kernels triton_kernels
COPY python python
RUN python3 -m venv /build \
    && CMAKE_ARGS="${CUDA_ARCHITECTURES:+-DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}}" \
       /build/bin/pip wheel --no-cache-dir --no-deps -w /wheels .

FROM ${PYTHON}
ARG DEVICE
ARG TORCH=torch
ARG EXTRAS=server
# The kernels for CPUs need libgomp; Triton compiles a launcher for each of its own.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && if [ "${DEVICE}" = cuda ]; then apt-get install -y --no-install-recommends gcc libc6-dev; fi \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir ${TORCH}
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/flashjanus-*.whl)[${EXTRAS}]"

RUN useradd --create-home --uid 1000 janus && install -d -o janus /models
USER janus
ENV HF_HOME=/models
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["flashjanus", "serve", "--host", "0.0.0.0", "--port", "8000"]
