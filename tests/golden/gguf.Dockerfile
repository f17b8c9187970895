# A Python server: packages, then code, each staged as a tree with fixed times and copied as one layer,
# so that equal inputs give equal layers whoever builds them.
FROM python:3.13-slim@sha256:cf1b6e9cc15cc669d1c096bf5918d3acfa4808bfa16bfd5176ccae1864d93e2d AS base

FROM base AS build
USER 0:0
# The compiler of the base's own distribution, which stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# For any processor with AVX2, not for the builder's alone; without OpenMP, whose library slim bases do not have, and
# without what looks at images.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_CURL=OFF"
ARG INDEX="https://pypi.org/simple"
COPY build/ /build/
RUN --mount=type=cache,id=mlimg,target=/var/cache/mlimg \
    --mount=type=secret,id=ca_bundle \
    ["python3", "-B", "/build/install.py"]
# The package has each library six times, as links became files in it: each stays once, beside the names that lead to it.
# hadolint ignore=DL3003
RUN cd /layers/deps/opt/venv/lib/python3*/site-packages && rm -rf lib include bin && cd llama_cpp/lib && \
    for library in lib*.so; do rm -f "$library".*.* && ln -sf "$library" "$library.0"; done && \
    touch --no-dereference -d @0 . .. ../.. lib*.so.0
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
CMD ["exec", "--", "python", "/opt/mlimg/start.py", "{model_dir}", "{model_name}", "{host}", "{port}"]
LABEL io.mlimg.server.inputs="sha256:ae410cba3f52b20fdc6fd87a5c44190f60129b933e540cdb2830761cd347e304" \
    io.mlimg.server.key="sha256:5b9fcaad21790b5c08b5d55c93929c137682083489778fd2aa7849dbf394e3f3" \
    io.mlimg.server.template="gguf@1" \
    io.mlimg.server.version="1.0" \
    org.opencontainers.image.base.name="python:3.13-slim" \
    org.opencontainers.image.version="1.0"
