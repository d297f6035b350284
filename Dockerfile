# Two stages: sources, pip and what it downloads stay in the first; the second has the environment alone.
# A tag without the patch level: rebuilding brings the security fixes of Python and Debian.
FROM python:3.11-slim-bookworm AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# Builds of PyTorch without CUDA, 4 GB smaller; --build-arg TORCH_INDEX=https://pypi.org/simple has it. In a layer
# of their own, before the sources: a change of the code does not fetch them again. What they need comes below, from
# PyPI: the other index has it in some versions only.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch torchvision

# --build-arg EXTRAS=service,milvus searches in Milvus as well.
ARG EXTRAS=service
COPY pyproject.toml README.md LICENSE ./
COPY lmm_classifier lmm_classifier
RUN pip install --constraint constraints.txt ".[$EXTRAS]"


FROM python:3.11-slim-bookworm

# It owns nothing but /models, where weights are kept; a volume put there takes its owner from it. With a name in
# /etc/passwd, for PyTorch asks for one.
RUN groupadd --gid 10001 lmm \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin lmm \
    && install --directory --owner lmm --group lmm /models
COPY --from=build /opt/venv /opt/venv

# Whatever libraries write goes to /models (weights) or /tmp (the rest): everything else may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/models/huggingface \
    TORCH_HOME=/models/torch \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1

# A number, not the name: who runs it can tell that it is not root (Kubernetes' runAsNonRoot).
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000

# With what is there anyway; not urllib, which would ask the proxy of the environment.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
from http.client import HTTPConnection; \
asked = HTTPConnection('127.0.0.1', 8000, timeout=4); \
asked.request('GET', '/health'); \
raise SystemExit(asked.getresponse().status != 200)"]

# At every address of the container, so these settings must hold `service.api_keys`: without, it does not start.
CMD ["lmm-classifier", "serve", "--config", "/config/service.yaml", "--host", "0.0.0.0"]
