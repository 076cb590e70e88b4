"""nginx, haproxy and Caddy in front, configured as docs/clients.md says, with and without TLS.

Through each of them go boto3, aws-cli and rclone, configured as it says too.

    proxies.py                   all checks but the next
    proxies.py large-refusals    whether the answer arrives when a large upload is refused before its end
"""

import concurrent.futures
import io
import os
import socket
import ssl
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from boto3.s3.transfer import TransferConfig
from s3 import ENDPOINT, MIB, client, content, documented, equal, refused, sha256

# Longer than any answer takes, and shorter than the second for which clients wait for "100 Continue".
STALL_SECONDS = 0.8
KEYS = ["plain", "ä ü/+&=?#%", "a//b", "/first", "a/./b c", "a%2Fb", "~'()*!,;:@$", "dir/"]


# The proxies: their configuration, and the command that runs them in the foreground.


def nginx(places, plain, tls):
    places |= {
        "listen 80;": f"listen {plain};",
        "listen 443 ": f"listen {tls} ",
        "s3.example.com;": "localhost;",
    }
    user = "user root;" if os.geteuid() == 0 else ""
    here = "".join(
        f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    Path("nginx.conf").write_text(
        f"daemon off; {user} pid nginx.pid; error_log nginx.log; events {{}} http {{ access_log off; {here}\n"
        + documented("nginx", places)
        + "}\n"
    )
    return ["nginx", "-p", os.getcwd(), "-c", "nginx.conf", "-e", "nginx.log"]


def haproxy(places, plain, tls):
    places |= {"bind :80": f"bind {plain}", "bind :443": f"bind {tls}"}
    Path("haproxy.cfg").write_text(documented("haproxy", places))
    return ["haproxy", "-db", "-f", "haproxy.cfg"]


def caddy(places, plain, tls):
    for scheme, address in (("http", plain), ("https", tls)):
        places[f"{scheme}://s3.example.com"] = f"{scheme}://localhost:{address.split(':')[1]}"
    ours = "{\n admin off\n auto_https off\n default_bind 127.0.0.1\n}\n"
    Path("Caddyfile").write_text(ours + documented("Caddy", places))
    return ["caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"]


class Front:
    """Where a running proxy is reached; or the server itself."""

    def __init__(self, name, *endpoints):
        self.name, self.endpoints = name, endpoints
        self.plain, self.tls = endpoints[0], endpoints[-1]


@contextmanager
def running(proxy):
    ports = free_port(), free_port()
    certificate = str(Path("certificate.pem").resolve())
    places = {"HOST:9000": urlsplit(ENDPOINT).netloc, "/etc/ssl/s3.example.com.pem": certificate}
    command = proxy(places, *(f"127.0.0.1:{port}" for port in ports))
    home = {"XDG_CONFIG_HOME": os.getcwd(), "XDG_DATA_HOME": os.getcwd()}
    with open(f"{proxy.__name__}.out", "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | home)
    try:
        for port in ports:
            wait_for(port, process)
        yield Front(proxy.__name__, f"http://localhost:{ports[0]}", f"https://localhost:{ports[1]}")
    except Exception:
        for name in (f"{proxy.__name__}.out", f"{proxy.__name__}.log"):
            if Path(name).exists():
                print(name, Path(name).read_text()[-3000:], sep=":\n", flush=True)
        raise
    finally:
        process.terminate()
        process.wait(10)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(port, process):
    for _ in range(100):
        equal(process.poll(), None, "how the proxy ended")
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}")


def make_certificate():
    """Of this server's own; the certificate and its key are one file, as haproxy wants them."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*make, "-keyout", "key", "-out", "certificate"], check=True, capture_output=True)
    Path("certificate.pem").write_text(Path("certificate").read_text() + Path("key").read_text())
    os.environ["AWS_CA_BUNDLE"] = str(Path("certificate").resolve())


# What the clients use.


def boto(endpoint):
    """The documented client, which asks once: a retry would hide a failure."""
    names = {}
    block = documented(
        "boto3", {"http://HOST:9000": endpoint, "Config(": 'Config(retries={"max_attempts": 0}, '}
    )
    exec(block, names)
    return names["s3"]


def curl(*arguments, **more):
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--cacert", "certificate", *arguments]
    return subprocess.run(command, **{"check": True, "capture_output": True} | more).stdout


def wrongly_signed(url):
    return url[:-1] + ("b" if url.endswith("a") else "a")


def swiftly(call, what):
    begun = time.monotonic()
    answer = call()
    seconds = time.monotonic() - begun
    equal(seconds < STALL_SECONDS, True, f"{what} took {seconds:.2f} s, less than {STALL_SECONDS}")
    return answer


# The checks: each through one proxy, in a bucket of its own.


def large_and_small(front, bucket):
    """Over TLS boto3 sends its checksum behind the body (aws-chunked), over plain HTTP before it."""
    large = content("large", 64 * MIB)
    for endpoint in front.endpoints:
        s3 = boto(endpoint)
        for size in (0, 1, 65536, MIB + 1):
            data = content(size, size)
            s3.put_object(Bucket=bucket, Key=f"size {size}", Body=data)
            equal(
                s3.get_object(Bucket=bucket, Key=f"size {size}")["Body"].read() == data, True, f"{size} bytes"
            )
        for body in (large, io.BytesIO(large)):
            s3.put_object(Bucket=bucket, Key="large", Body=body)
            got = s3.get_object(Bucket=bucket, Key="large", ChecksumMode="ENABLED")
            equal(sha256(got["Body"].read()), sha256(large), "large")
        s3.upload_fileobj(
            io.BytesIO(large), bucket, "parts", Config=TransferConfig(multipart_chunksize=8 * MIB)
        )
        back = io.BytesIO()
        s3.download_fileobj(bucket, "parts", back)
        equal(sha256(back.getvalue()), sha256(large), "parts")
        middle = "bytes=9000000-9999999"
        for asked, part in (
            ("bytes=5-", large[5:]),
            ("bytes=-7", large[-7:]),
            (middle, large[9000000:10000000]),
        ):
            got = s3.get_object(Bucket=bucket, Key="large", Range=asked)
            equal(got["ResponseMetadata"]["HTTPStatusCode"], 206, asked)
            equal(sha256(got["Body"].read()), sha256(part), asked)
        refused(
            "InvalidRange",
            lambda: s3.get_object(Bucket=bucket, Key="large", Range=f"bytes={len(large)}-"),
            416,
        )


def checksums(front, choice):
    """Those checks of checksums.py that `choice`, an expression about `name`, says, through the proxy."""
    script = f"""
import s3
run = s3.run
s3.run = lambda *checks: run(*(check for check in checks if (lambda name: {choice})(check.__name__)))
import checksums
"""
    surroundings = {"CAIRN_ENDPOINT": front.plain, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | surroundings, capture_output=True)
    equal(done.returncode, 0, f"checksums.py:\n{done.stdout.decode()}{done.stderr.decode()}")


def checksums_and_signed_chunks(front, bucket):
    """But for refusals amid a body, which are among the large ones."""
    checksums(front, "name != 'bad_chunks_are_refused'")


def names_and_headers_stay(front, bucket):
    for endpoint in front.endpoints:
        s3 = boto(endpoint)
        metadata = {"under_score": "1", "dot.ted": "2", "dash-ed": "a  b"}
        for key in KEYS:
            s3.put_object(Bucket=bucket, Key=key, Body=key.encode(), Metadata=metadata)
            got = s3.get_object(Bucket=bucket, Key=key)
            found = got["Metadata"]
            if front.name == "caddy":  # which capitalises names of headers
                found = {name.lower(): value for name, value in found.items()}
            equal((got["Body"].read(), found), (key.encode(), metadata), key)
            s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
            url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
            equal(curl("--fail", "--path-as-is", url), key.encode(), f"presigned {key}")
        found = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
        equal(sorted(found), sorted([*KEYS, "copy"]), "keys")
        for key in found:
            s3.delete_object(Bucket=bucket, Key=key)


def presigned(front, bucket):
    """Signatures cover the host and port that the client asked. With TLS curl speaks HTTP/2 where it can."""
    Path("file").write_bytes(content("presigned", 20 * MIB))
    for endpoint in front.endpoints:
        s3, k = boto(endpoint), {"Bucket": bucket, "Key": "ä +&"}
        put, get, head = (
            s3.generate_presigned_url(f"{name}_object", Params=k) for name in ("put", "get", "head")
        )
        curl("--fail", "--upload-file", "file", put)
        equal(sha256(curl("--fail", get)), sha256(Path("file").read_bytes()), "a presigned object")
        equal(
            curl("--fail", "--range", "1000-1999", get), Path("file").read_bytes()[1000:2000], "a range of it"
        )
        equal(f"content-length: {20 * MIB}" in curl("--fail", "--head", head).decode().lower(), True, "head")
        refusal = curl(wrongly_signed(get))
        equal(b"SignatureDoesNotMatch" in refusal, True, f"another signature: {refusal[:300]}")
        if front.name != "caddy":  # which answers for no other host
            refusal = curl(get, "--header", "Host: elsewhere:80")
            equal(b"SignatureDoesNotMatch" in refusal, True, f"another host: {refusal[:300]}")


def uploads_do_not_stall(front, bucket):
    """Nobody waits for a "100 Continue" that does not come, in particular not for a body of no bytes."""
    for endpoint in front.endpoints:
        s3 = boto(endpoint)
        s3.list_objects_v2(Bucket=bucket)
        for number in range(10):
            files = ("an empty file", io.BytesIO()), ("a file", io.BytesIO(b"x"))
            for what, body in (("no bytes", b""), ("a byte", b"x"), *files):
                put = lambda: s3.put_object(Bucket=bucket, Key="k", Body=body)
                swiftly(put, f"put {number} of {what}")
        url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k"})
        for data in (b"", b"x"):
            for expect in ("Expect: 100-continue", "Expect:"):
                put = ["--request", "PUT", "--data-binary", "@-", "--header", expect, url]
                swiftly(lambda: curl("--fail", *put, input=data), f"{len(data)} bytes by curl, {expect}")


def one_hundred_continue(front, bucket):
    """By hand: who expects it hears it, or its final answer, before it has sent a byte of the body."""
    s3, at = boto(front.plain), urlsplit(front.plain)
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k"})
    for target, status in ((url, b"200"), (wrongly_signed(url), b"403")):
        target = target.removeprefix(front.plain)
        with socket.create_connection((at.hostname, at.port), timeout=10) as stream:
            stream.sendall(f"PUT {target} HTTP/1.1\r\nHost: {at.netloc}\r\n".encode())
            stream.sendall(b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
            answer = swiftly(lambda: stream.recv(65536), "the first answer")
            if answer.startswith(b"HTTP/1.1 100"):
                stream.sendall(bytes(1000))
            # Caddy says it twice: once itself, once for the gateway.
            while answer.startswith(b"HTTP/1.1 100"):
                answer = answer.partition(b"\r\n\r\n")[2] or stream.recv(65536)
            equal(answer[:12], b"HTTP/1.1 " + status, f"the last answer: {answer[:500]}")


def refusals_keep_in_step(front, bucket):
    """A client that was refused does not send its body; its next request must not be taken for that."""
    for endpoint in front.endpoints:
        s3 = boto(endpoint)
        s3.put_object(Bucket=bucket, Key="there", Body=b"x")
        for size in (1, 1000, 60_000):
            put = lambda: s3.put_object(Bucket=bucket, Key="there", Body=bytes(size), IfNoneMatch="*")
            refused("PreconditionFailed", put, 412)
            s3.put_object(Bucket=bucket, Key="other", Body=bytes(size))
            refused("PreconditionFailed", put, 412)
            equal(s3.get_object(Bucket=bucket, Key="there")["Body"].read(), b"x", "what was there")
            refused(
                "NoSuchBucket", lambda: s3.put_object(Bucket="proxies-none", Key="k", Body=bytes(size)), 404
            )
            equal(s3.head_object(Bucket=bucket, Key="other")["ContentLength"], size, "the other one")


def many_at_once(front, bucket):
    s3 = boto(front.tls)

    def one(number):
        data = content(number, number * 5000)
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=data)
        equal(s3.get_object(Bucket=bucket, Key=f"k{number}")["Body"].read() == data, True, f"k{number}")
        s3.delete_object(Bucket=bucket, Key=f"k{number}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(100)))


def bare():
    """What is not documented is not set."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}


def aws_cli(front, bucket):
    """Files, and a bucket for pages of another origin, which ask by a preflight."""
    Path("environment").write_text(documented("aws-cli", {"http://HOST:9000": front.tls}))
    cors = documented("Browsers (CORS)", {"BUCKET": bucket})
    Path("file").write_bytes(content("aws", 20 * MIB))
    script = f"""set -e; . ./environment; target='s3://{bucket}/ä +&'
    aws s3 cp --quiet file "$target"; aws s3 cp --quiet "$target" - | cmp - file
    aws s3 rm --quiet "$target"
    {cors}"""
    bundle = {"AWS_CA_BUNDLE": os.environ["AWS_CA_BUNDLE"]}
    subprocess.run(["bash", "-c", script], check=True, env=bare() | bundle)
    ask = ["--request", "OPTIONS", "--header", "Access-Control-Request-Method: PUT", "--include"]
    for origin, status in (("https://app.example.com", b"200"), ("https://elsewhere.example.com", b"403")):
        said = curl(*ask, "--http1.1", "--header", f"Origin: {origin}", f"{front.tls}/{bucket}/k")
        equal((said[9:12], origin.encode() in said), (status, status == b"200"), f"a preflight: {said}")


def rclone(front, bucket):
    Path("rclone.conf").write_text(documented("rclone", {"http://HOST:9000": front.tls}))
    Path("tree").mkdir(exist_ok=True)
    for size in (0, 1, 300_000, 20 * MIB):
        Path("tree", f"ä {size}").write_bytes(content(size, size))
    run = ["rclone", "--config", "rclone.conf", "--ca-cert", "certificate", "--retries", "1"]
    for more in (
        ["copy", "tree", f"cairn:{bucket}/up"],
        ["check", "--download", "tree", f"cairn:{bucket}/up"],
    ):
        done = subprocess.run([*run, *more], capture_output=True, timeout=60, env=bare())
        equal(done.returncode, 0, f"rclone {more[0]}: {done.stderr.decode()}")


CHECKS = [
    large_and_small,
    checksums_and_signed_chunks,
    names_and_headers_stay,
    presigned,
    uploads_do_not_stall,
    one_hundred_continue,
    refusals_keep_in_step,
    many_at_once,
    aws_cli,
    rclone,
]


def large_refusals(front, bucket):
    """The answer to a large upload that is refused before its body was read arrives, all the same."""
    Path("file").write_bytes(bytes(64 * MIB))
    for endpoint in front.endpoints:
        s3, k = boto(endpoint), {"Bucket": bucket, "Key": "k"}
        wrong = wrongly_signed(s3.generate_presigned_url("put_object", Params=k))
        for expect in ("Expect:", "Expect: 100-continue"):
            for _ in range(5):
                # With HTTP/2 curl may lose what Caddy answers, though not its status.
                put = [
                    "--http1.1",
                    "--upload-file",
                    "file",
                    "--header",
                    expect,
                    "--write-out",
                    "%{http_code}",
                    wrong,
                ]
                said = curl(*put, check=False)
                equal(
                    (said[-3:], b"SignatureDoesNotMatch" in said),
                    (b"403", True),
                    f"curl, {expect}: {said[:300]}",
                )
        if front.name != "caddy":  # which itself closes after half a second
            equal(
                said_to_a_simple_client(endpoint, wrong),
                (403, True),
                "a client that sends all before it reads",
            )
        s3.put_object(**k, Body=b"x")
        for _ in range(5):
            refused(
                "PreconditionFailed", lambda: s3.put_object(**k, Body=bytes(64 * MIB), IfNoneMatch="*"), 412
            )
        equal(s3.get_object(**k)["Body"].read(), b"x", "what was there")


def refusals_amid_a_body(front, bucket):
    """The same when a chunk in the middle is what is wrong."""
    checksums(front, "name == 'bad_chunks_are_refused'")


def said_to_a_simple_client(endpoint, url):
    """Status, and whether the reason is there, for a client that sends all before it reads."""
    at = urlsplit(endpoint)
    with socket.create_connection((at.hostname, at.port), timeout=60) as stream:
        if at.scheme == "https":
            context = ssl.create_default_context(cafile="certificate")
            stream = context.wrap_socket(stream, server_hostname=at.hostname)
        head = f"PUT {url.removeprefix(endpoint)} HTTP/1.1\r\nHost: {at.netloc}\r\n"
        stream.sendall(f"{head}Content-Length: {64 * MIB}\r\n\r\n".encode())
        for _ in range(64):
            stream.sendall(bytes(MIB))
        answer = b""
        while b"</Error>" not in answer and (piece := stream.recv(65536)):
            answer += piece
        stream.close()
    return int(answer[9:12] or 0), b"SignatureDoesNotMatch" in answer


def empty(bucket):
    s3 = client()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            s3.delete_object(Bucket=bucket, Key=entry["Key"])
    s3.delete_bucket(Bucket=bucket)


@contextmanager
def itself():
    yield Front("no proxy", ENDPOINT)


def check_all(front, checks):
    failed = []
    for check in checks:
        name, begun = f"{front.name}: {check.__name__}", time.monotonic()
        try:
            client().create_bucket(Bucket="proxies")
            check(front, "proxies")
            print(f"ok      {name} ({time.monotonic() - begun:.1f} s)", flush=True)
        except Exception:
            failed.append(name)
            print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
        # Also those of checksums.py, which makes them anew.
        for bucket in client().list_buckets()["Buckets"]:
            empty(bucket["Name"])
    return failed


def main():
    make_certificate()
    fronts = [running(proxy) for proxy in (nginx, haproxy, caddy)]
    checks = CHECKS
    if sys.argv[1:] == ["large-refusals"]:
        fronts, checks = [itself(), *fronts], [large_refusals, refusals_amid_a_body]
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    failed = []
    for front in fronts:
        with front as front:
            failed += check_all(front, checks)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


main()
