# A Node app with lb as the first process of its container. First: docker build -t lb . (in the project's folder)
FROM node:22-slim
COPY --from=lb /usr/bin/lb /usr/bin/lb
COPY container/workers.toml /etc/lb/lb.toml
COPY node/app.js /srv/app/app.js
RUN install -d -o node -g node /run/lb
USER node
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=2s CMD ["/usr/bin/lb", "status"]
ENTRYPOINT ["/usr/bin/lb"]
CMD ["run", "-f", "/etc/lb/lb.toml"]
