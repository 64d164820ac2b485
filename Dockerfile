# The Memory Proxy in a container: no shell, no root, its files in the volume /data (/data/proxy), or in the bucket that
# S3_BUCKET and its like name.
#   docker build -t memsync .
#   docker run -p 8484:8484 -v memsync:/data -e MEMSYNC_TOKEN memsync
# Plain http inside, for a platform that ends TLS before it; alone in the world it needs --tls-self-signed, or --tls-cert
# and --tls-key with a certificate.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY benches ./benches
RUN cargo build --release --locked --bin memsync && mkdir /empty

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/memsync /usr/local/bin/memsync
# The volume belongs to who runs the program.
COPY --from=build --chown=65532:65532 /empty /data
COPY LICENSE /usr/share/doc/memsync/LICENSE
ENV MEMSYNC_HOME=/data PORT=8484
VOLUME /data
EXPOSE 8484
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/memsync"]
# There is no shell to expand it: memsync itself puts the variable's value in the place of $PORT.
CMD ["serve", "--log-format", "json", "--listen", "0.0.0.0:$PORT"]
