# The Memory Proxy in a container, without a shell and without root. Its files are in the volume /data (/data/proxy), or in
# the bucket that S3_BUCKET and the related variables name.
#   docker build -t memsync .
#   docker run -p 8484:8484 -v memsync:/data -e MEMSYNC_TOKEN memsync
# It speaks plain http, for a platform with a TLS server in front. Otherwise add --tls-self-signed, or --tls-cert and
# --tls-key.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY benches ./benches
RUN cargo build --profile dist --locked --bin memsync && mkdir /empty

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/memsync /usr/local/bin/memsync
# The user of the program owns the volume.
COPY --from=build --chown=65532:65532 /empty /data
COPY LICENSE /usr/share/doc/memsync/LICENSE
ENV MEMSYNC_HOME=/data PORT=8484
VOLUME /data
EXPOSE 8484
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/memsync"]
# memsync itself replaces $PORT, because the image has no shell.
CMD ["serve", "--log-format", "json", "--listen", "0.0.0.0:$PORT"]
