#!/usr/bin/env bash
# A page in Chromium uses a bucket of another origin: see browser.mjs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Where `tests/run` puts the packages.
export CAIRN_TEST_NODE="${CAIRN_TEST_NODE:-$here/../../target/clients-node}"
[ -d "$CAIRN_TEST_NODE/node_modules" ] || {
    echo "FAILED: $CAIRN_TEST_NODE lacks the clients of JavaScript: \`tests/run\` installs them" >&2
    exit 1
}
CHROMIUM=$(command -v chromium) || { echo "FAILED: no chromium: \`tests/run\` installs it" >&2; exit 1; }
export CHROMIUM AWS_MAX_ATTEMPTS=1
# Chromium writes below these.
export HOME="$PWD/home" XDG_CONFIG_HOME="$PWD/home" XDG_CACHE_HOME="$PWD/home"
mkdir -p "$HOME"
exec node "$here/browser.mjs"
