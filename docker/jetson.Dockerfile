# A Jetson with JetPack 6 (L4T r36.4: TensorRT 10.3, CUDA 12.6, Python 3.10), built on the board. From the root of the repository:
#
#   docker build -f docker/jetson.Dockerfile -t edgeclip:jetson .
#   docker run --rm --runtime nvidia -v ./clip-b32:/bundle:ro -v edgeclip-cache:/var/cache/edgeclip edgeclip:jetson \
#       build /bundle --target tensorrt --precision fp16 --low-memory
#
# JetPack 7 has no l4t-jetpack image; there the containers of servers with Arm processors run:
#
#   docker build -f docker/jetson.Dockerfile --build-arg BASE=nvcr.io/nvidia/tensorrt:26.05-py3 -t edgeclip:jetson .
#
# TensorRT comes from the base: pip's would not know the board. So the environment sees the system's packages.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM python:3.11.14-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE NOTICE ./
COPY export export
COPY runtime runtime
COPY models models
COPY edgeclip edgeclip
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
ARG EXTRAS=cpu,tensorrt
COPY docker/constraints-jetson.txt /etc/edgeclip/
# hadolint ignore=DL3008
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/edgeclip \
    && /opt/edgeclip/bin/pip install --no-cache-dir -c /etc/edgeclip/constraints-jetson.txt \
    "$(echo /wheels/edgeclip-*.whl)[${EXTRAS}]" \
    && useradd --uid 10001 --create-home --groups video edgeclip \
    && install -d -o edgeclip -m 0700 /var/cache/edgeclip
ENV PATH=/opt/edgeclip/bin:$PATH PYTHONUNBUFFERED=1 EDGECLIP_CACHE=/var/cache/edgeclip
USER 10001
WORKDIR /home/edgeclip
# the embedded model, replayed: the engine opens and computes what it should
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["edgeclip", "verify", "nano"]
ENTRYPOINT ["edgeclip"]
CMD ["doctor"]
