# A Python server: packages, then code, each staged as a tree with fixed times and copied as one layer,
# so that equal inputs give equal layers whoever builds them.
FROM vllm/vllm-openai:v0.26.0@sha256:bc0661eabebfa2f8474a04a0dced32368c7bb8d5f7ed726adfb0a6f53c5635d4 AS base

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
CMD ["exec", "--", "env", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "USER=mlimg", "vllm", "serve", "{model_dir}", "--config=/opt/mlimg/vllm.yaml", "--served-model-name={model_name}", "--host={host}", "--port={port}"]
LABEL io.mlimg.server.inputs="sha256:ae410cba3f52b20fdc6fd87a5c44190f60129b933e540cdb2830761cd347e304" \
    io.mlimg.server.key="sha256:34b2220821a8f5fde34eab180efc73dec56b31e00859f7a30c1888287645e4fa" \
    io.mlimg.server.template="vllm@1" \
    io.mlimg.server.version="1.0" \
    org.opencontainers.image.base.name="vllm/vllm-openai:v0.26.0" \
    org.opencontainers.image.version="1.0"
