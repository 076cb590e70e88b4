# For the scripts beside it: how they fail, and what docs/clients.md has for them.
fail() { echo "FAILED: $*" >&2; exit 1; }
# The block below a heading of docs/clients.md, for the server and keys of this test.
documented() {
    sed -n "/^### $1\$/,/^\`\`\`\$/p" "$(dirname "${BASH_SOURCE[0]}")/../../docs/clients.md" |
        sed "1,/^\`\`\`./d; /^\`\`\`\$/d; s|HOST:9000|${CAIRN_ENDPOINT#http://}|" |
        sed "s|ACCESS_KEY\$|$AWS_ACCESS_KEY_ID|; s|SECRET_KEY\$|$AWS_SECRET_ACCESS_KEY|"
}
