# The node as a container image. Built without a network, from what `make wheelhouse` fetched:
#   make wheelhouse && make image          (docs/install/container.md)
# BASE_IMAGE and BUILD_IMAGE must have the same Python at the same path; BUILD_IMAGE has a C++ compiler too.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim-trixie
ARG BUILD_IMAGE=docker.io/library/python:3.13-trixie
ARG CUDA_BUILD_IMAGE=docker.io/nvidia/cuda:12.9.1-devel-ubuntu24.04

# libllama for many processors: the slow part, and it changes seldom.
FROM ${BUILD_IMAGE} AS native-cpu
COPY dist/wheelhouse/native /wheelhouse
COPY provisioning/native /src/provisioning/native
COPY provisioning/image/native.sh /src/provisioning/image/
RUN /src/provisioning/image/native.sh /wheelhouse /wheels

# The same with CUDA as one more backend, which is loaded where a driver is. 8.0 to 9.0 as code, later ones through PTX.
FROM ${CUDA_BUILD_IMAGE} AS native-cuda
ARG CUDA_ARCHITECTURES="80-real;86-real;89-real;90"
COPY dist/wheelhouse/native /wheelhouse
COPY provisioning/native /src/provisioning/native
COPY provisioning/image /src/provisioning/image
RUN /src/provisioning/image/python.sh \
    && /src/provisioning/image/native.sh /wheelhouse /wheels \
    -DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}"

FROM ${BUILD_IMAGE} AS node
COPY dist/wheelhouse/tools /wheelhouse/tools
COPY pyproject.toml README.md LICENSE /src/
COPY provisioning/package_models.py /src/provisioning/
COPY models /src/models
COPY edge /src/edge
COPY provisioning/image /src/provisioning/image
RUN /src/provisioning/image/node.sh /wheelhouse/tools /src /wheels

# What the base image brings itself, for the bill of materials.
FROM ${BASE_IMAGE} AS base-facts
RUN dpkg-query --show --showformat '${Package}\t${Version}\t${Architecture}\t${source:Package}\n' >/packages.tsv \
    && cp /etc/os-release /os-release

FROM node AS site-cpu
COPY dist/wheelhouse/run /wheelhouse/run
COPY --from=native-cpu /wheels /wheels
COPY --from=base-facts /packages.tsv /os-release /facts/
RUN /src/provisioning/image/site.sh /wheelhouse/run /wheels onnx,otlp /facts

FROM node AS site-cuda
COPY dist/wheelhouse/run /wheelhouse/run
COPY --from=native-cuda /wheels /wheels
COPY --from=base-facts /packages.tsv /os-release /facts/
RUN /src/provisioning/image/site.sh /wheelhouse/run /wheels onnx-gpu,otlp /facts

# The two that are run stand on the base image itself and not on a stage before them: buildah names such a stage at random, and the
# name would stand in the history of what follows.
FROM ${BASE_IMAGE} AS cuda
RUN printf 'edge:x:65532:65532:edge node:/var/lib/edge:/usr/sbin/nologin\n' >>/etc/passwd \
    && printf 'edge:x:65532:\n' >>/etc/group \
    && install --directory --owner=65532 --group=65532 --mode=0700 /var/lib/edge
COPY --from=site-cuda /opt/edge /opt/edge
ENV PATH=/opt/edge/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/var/lib/edge \
    EDGE_HOME=/var/lib/edge \
    EDGE_SERVER__HOST=0.0.0.0 \
    EDGE_LOG__FORMAT=json \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LD_LIBRARY_PATH=/opt/edge/lib/nvidia \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="edge" \
      org.opencontainers.image.description="An edge inference node, with CUDA" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /var/lib/edge
USER 65532:65532
RUN ["edge", "version"]
VOLUME ["/var/lib/edge"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=600s --retries=3 CMD ["edge", "health"]
ENTRYPOINT ["edge"]
CMD ["serve"]

FROM ${BASE_IMAGE} AS cpu
RUN printf 'edge:x:65532:65532:edge node:/var/lib/edge:/usr/sbin/nologin\n' >>/etc/passwd \
    && printf 'edge:x:65532:\n' >>/etc/group \
    && install --directory --owner=65532 --group=65532 --mode=0700 /var/lib/edge
COPY --from=site-cpu /opt/edge /opt/edge
ENV PATH=/opt/edge/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/var/lib/edge \
    EDGE_HOME=/var/lib/edge \
    EDGE_SERVER__HOST=0.0.0.0 \
    EDGE_LOG__FORMAT=json \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="edge" \
      org.opencontainers.image.description="An edge inference node, for processors of any kind" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /var/lib/edge
USER 65532:65532
RUN ["edge", "version"]
VOLUME ["/var/lib/edge"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=600s --retries=3 CMD ["edge", "health"]
ENTRYPOINT ["edge"]
CMD ["serve"]
