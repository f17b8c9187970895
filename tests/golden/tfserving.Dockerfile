# TensorFlow Serving on its own base, which has no Python: nothing of mlimg runs there.
FROM tensorflow/serving:2.18.0@sha256:21f4db64d2ec2fa400867097a304900d180776d1ff6d1fdab584f9969e34bb06 AS base

FROM base AS layout
USER 0:0
# Versions lie below a model's folder: the link leads to the model, in the image or mounted.
RUN mkdir -p /layout/opt/mlimg/repository && ln -s /models /layout/opt/mlimg/repository/1 \
    && find /layout -exec touch --no-dereference -d @0 {} +

FROM base
# What a base says of a server of its own does not hold for this one.
USER 0:0
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
COPY --from=layout /layout/ /
COPY image/ /
USER 10001:0
EXPOSE 8080
ENTRYPOINT ["tensorflow_model_server"]
CMD ["--port=8500", "--rest_api_port=8080", "--model_name=model", "--model_base_path=/opt/mlimg/repository", "--tensorflow_intra_op_parallelism=0"]
LABEL io.mlimg.server.inputs="sha256:ae410cba3f52b20fdc6fd87a5c44190f60129b933e540cdb2830761cd347e304" \
    io.mlimg.server.key="sha256:8ad020f36dbadfe373f234b86f1d7fd13c40018d290f6d9e1448d9796f5661cf" \
    io.mlimg.server.template="tfserving@1" \
    io.mlimg.server.version="1.0" \
    org.opencontainers.image.base.name="tensorflow/serving:2.18.0" \
    org.opencontainers.image.version="1.0"
