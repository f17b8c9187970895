# A Python server: packages, then code, each staged as a tree with fixed times and copied as one layer,
# so that equal inputs give equal layers whoever builds them.
FROM registry.example.com:5000/base/python:3.13@sha256:aa0e195e4c8c474d2fcffb12b34951d29957b8454e1cb44c7656428882be1641 AS base

FROM base AS build
USER 0:0
ARG INDEX="https://mirror.example.com/simple"
COPY build/ /build/
RUN --mount=type=cache,id=mlimg,target=/var/cache/mlimg \
    --mount=type=secret,id=ca_bundle \
    --mount=type=secret,id=netrc,required=true \
    --mount=type=secret,id=token,required=true \
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
ENV GREETING="a \"quoted\" \$HOME\\ `id` # <<EOF" \
    OMP_NUM_THREADS="2"
USER 10001:0
EXPOSE 8080
ENTRYPOINT ["/opt/venv/bin/python", "-m", "mlimg.runtime"]
CMD ["serve"]
LABEL io.mlimg.server.inputs="sha256:ae410cba3f52b20fdc6fd87a5c44190f60129b933e540cdb2830761cd347e304" \
    io.mlimg.server.key="sha256:3df925719cd434d108e7985eba07310741d45d3e736c69205bbfcb841377c050" \
    io.mlimg.server.template="sklearn@1" \
    io.mlimg.server.version="1.0" \
    org.opencontainers.image.base.name="registry.example.com:5000/base/python:3.13" \
    org.opencontainers.image.version="1.0"
