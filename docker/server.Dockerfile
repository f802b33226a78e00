# A GPU server or a plain CPU: onnxruntime with the CUDA and cuDNN libraries of its own wheels. Nothing but the NVIDIA driver and
# the container toolkit is asked of the host. From the root of the repository:
#
#   docker build -f docker/server.Dockerfile -t edgeclip .
#   docker build -f docker/server.Dockerfile --build-arg EXTRAS=cpu --build-arg LIBRARIES= -t edgeclip:cpu .
#   docker run --rm --gpus all -v ./pictures:/pictures:ro edgeclip classify /pictures --labels 'a cat,a dog'
#
# python:slim and not nvcr.io/nvidia/tensorrt: the base is 0.1 GB instead of several, and it needs no account.
FROM python:3.11.14-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE NOTICE ./
COPY export export
COPY runtime runtime
COPY models models
COPY edgeclip edgeclip
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11.14-slim-bookworm
ARG EXTRAS=gpu
ARG LIBRARIES=onnxruntime-gpu[cuda,cudnn]
COPY constraints.txt docker/constraints-server.txt /etc/edgeclip/
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /etc/edgeclip/constraints.txt -c /etc/edgeclip/constraints-server.txt \
    "$(echo /wheels/edgeclip-*.whl)[${EXTRAS}]" ${LIBRARIES:+"${LIBRARIES}"} \
    && useradd --uid 10001 --create-home edgeclip \
    && install -d -o edgeclip -m 0700 /var/cache/edgeclip
ENV PYTHONUNBUFFERED=1 EDGECLIP_CACHE=/var/cache/edgeclip
USER 10001
WORKDIR /home/edgeclip
# the embedded model, replayed: the engine opens and computes what it should
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["edgeclip", "verify", "nano"]
ENTRYPOINT ["edgeclip"]
CMD ["doctor"]
