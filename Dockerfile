# An image of lb alone: one static binary, a config, and the folders that it writes to.
#
#   docker build -t lb .
#   docker run --rm -p 8080:8080 -v ./lb:/etc/lb:ro lb     # ./lb/lb.toml
#
# To have lb run your app as pid 1 of the app's own image: COPY --from=lb /usr/bin/lb /usr/bin/lb. See
# docs/containers.md.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make build && mkdir -p /root-of-lb/run/lb /root-of-lb/var/lib/lb

FROM scratch
COPY --from=build /src/bin/lb /usr/bin/lb
COPY --from=build --chown=65532:65532 /root-of-lb/ /
COPY examples/container/front.toml /etc/lb/lb.toml
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=2s CMD ["/usr/bin/lb", "status"]
ENTRYPOINT ["/usr/bin/lb"]
CMD ["run", "-f", "/etc/lb/lb.toml"]
