# A Python server: packages, then code, each staged as a tree with fixed times and copied as one layer,
# so that equal inputs give equal layers whoever builds them.
FROM python:3.13-slim@sha256:cf1b6e9cc15cc669d1c096bf5918d3acfa4808bfa16bfd5176ccae1864d93e2d AS base

FROM base AS build
USER 0:0
ARG INDEX="https://pypi.org/simple"
COPY build/ /build/
RUN --mount=type=cache,id=mlimg,target=/var/cache/mlimg \
    --mount=type=secret,id=ca_bundle \
    ["python3", "-B", "/build/install.py"]
COPY image/ /layers/code/
RUN ["python3", "-B", "/build/stage.py"]

FROM base
# What a base says of a server of its own does not hold for this one.
USER 0:0
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
COPY --from=build /layers/deps/ /
COPY --from=build /layers/code/ /
ENV PATH="/opt/venv/bin:$PATH" \
    PYTHONPATH="/opt/mlimg" \
    PYTHONSAFEPATH="1" \
    PYTHONUNBUFFERED="1" \
    PYTHONDONTWRITEBYTECODE="1" \
    HOME="/cache" \
    TMPDIR="/cache" \
    XDG_CACHE_HOME="/cache"
USER 10001:0
EXPOSE 8080
ENTRYPOINT ["/opt/venv/bin/python", "-m", "mlimg.runtime"]
CMD ["serve"]
LABEL io.mlimg.server.inputs="sha256:ae410cba3f52b20fdc6fd87a5c44190f60129b933e540cdb2830761cd347e304" \
    io.mlimg.server.key="sha256:3e6e3da2a4315a8c1ce3a3d2d051b379bf7f6a65ca7852cc14777141e2cf6eca" \
    io.mlimg.server.template="onnx@1" \
    io.mlimg.server.version="1.0" \
    org.opencontainers.image.base.name="python:3.13-slim" \
    org.opencontainers.image.version="1.0"
