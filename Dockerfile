# The image by a daemon: the same root file system as `cargo xtask image` writes without one (docs/decisions/0014-image.md).
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Brings the compiler and the linker of the eBPF programs along, if they are not there.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo xtask image --root /image

FROM scratch
LABEL org.opencontainers.image.title="mesh-agent"
LABEL org.opencontainers.image.description="Node-level service mesh agent, its authority and its controller"
LABEL org.opencontainers.image.version="0.1.0"
LABEL org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
ENV PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/mesh-agent"]
