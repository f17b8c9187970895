# A Python server: packages, then code, each staged as a tree with fixed times and copied as one layer,
# so that equal inputs give equal layers whoever builds them.
FROM python:3.11-slim@sha256:7b88c7e10751cd1ab166b1059ae569ff259c5ba7da9622d6b9ad16b6d8a7b3c0 AS base

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
CMD ["exec", "--", "env", "MLSERVER_HOST={host}", "MLSERVER_HTTP_PORT={port}", "MLSERVER_MODEL_NAME={model_name}", "MLSERVER_MODEL_URI={model_dir}", "PYTHONPATH=/opt/mlimg/code", "mlserver", "start", "/opt/mlimg"]
LABEL io.mlimg.server.inputs="sha256:ae410cba3f52b20fdc6fd87a5c44190f60129b933e540cdb2830761cd347e304" \
    io.mlimg.server.key="sha256:59a76df31a392af4781f944879492d6998e0125c1cf8de65ab35cef68cd2912b" \
    io.mlimg.server.template="mlserver@1" \
    io.mlimg.server.version="1.0" \
    org.opencontainers.image.base.name="python:3.11-slim" \
    org.opencontainers.image.version="1.0"
