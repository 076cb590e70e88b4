#!/usr/bin/env bash
# The AWS SDK for JavaScript and minio-js, from Node.js: see sdk.mjs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Where `tests/run` puts the packages.
export CAIRN_TEST_NODE="${CAIRN_TEST_NODE:-$here/../../target/clients-node}"
[ -d "$CAIRN_TEST_NODE/node_modules" ] || {
    echo "FAILED: $CAIRN_TEST_NODE lacks the clients of JavaScript: \`tests/run\` installs them" >&2
    exit 1
}
# A retry would hide a failure.
export AWS_MAX_ATTEMPTS=1
exec node "$here/sdk.mjs"
