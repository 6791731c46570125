# shellcheck shell=sh
# Sourced by the scripts that build: VERSION (the environment's, or git's tag or what `git describe` makes of it), COMMIT, and
# SOURCE_DATE_EPOCH, the commit's time. Without git's history they are unknown and 0.
VERSION=${VERSION:-$(git describe --tags --always --dirty --match 'v*' 2>/dev/null || echo unknown)}
COMMIT=$(git rev-parse HEAD 2>/dev/null || echo unknown)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export VERSION COMMIT SOURCE_DATE_EPOCH
