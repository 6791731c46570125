# Static programs and nothing else. scripts/image.sh makes the context: a folder of programs for each architecture.
FROM scratch
ARG TARGETARCH
COPY linux-${TARGETARCH}/ /
ENTRYPOINT ["/detour-agent"]
