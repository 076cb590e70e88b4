//! The whole load generator against a tiny S3 in memory that can be told to misbehave.

use super::*;
use bytes::Bytes;
use clap::Parser;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: BenchArgs,
}

fn args(flags: &str) -> Result<BenchArgs, clap::Error> {
    Cli::try_parse_from(std::iter::once("bench").chain(flags.split_whitespace())).map(|cli| cli.args)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The first byte of every object read is wrong.
    Corrupt,
    /// Every object read lacks its last byte.
    Short,
    /// Every put is refused after the first ten.
    Full,
}

/// Buckets and objects by path, and how many requests of each kind there were.
#[derive(Default)]
struct Store {
    objects: HashMap<String, Bytes>,
    counts: HashMap<Method, usize>,
}

struct Server {
    endpoint: String,
    store: Arc<Mutex<Store>>,
}

impl Server {
    async fn start(fault: Fault) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let store = Arc::new(Mutex::new(Store::default()));
        let shared = store.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let store = shared.clone();
                let service = service_fn(move |request| answer(store.clone(), fault, request));
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move { http.serve_connection(TokioIo::new(stream), service).await });
            }
        });
        Server { endpoint, store }
    }

    async fn bench(&self, flags: &str) -> (session::Report, Result<(), BenchError>) {
        let flags = format!(
            "--endpoint {0} --admin {0} --duration 200ms {flags}",
            self.endpoint
        );
        Session::new(args(&flags).unwrap()).unwrap().run().await
    }

    fn left(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.store.lock().unwrap().objects.keys().cloned().collect();
        paths.sort();
        paths
    }

    fn count(&self, method: Method) -> usize {
        self.store
            .lock()
            .unwrap()
            .counts
            .get(&method)
            .copied()
            .unwrap_or(0)
    }
}

async fn answer(
    store: Arc<Mutex<Store>>,
    fault: Fault,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let signed = request
        .uri()
        .query()
        .is_some_and(|query| query.contains("X-Amz-Signature="));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut store = store.lock().unwrap();
    *store.counts.entry(method.clone()).or_default() += 1;
    let respond = |status, body: Bytes| Ok(Response::builder().status(status).body(Full::new(body)).unwrap());
    if path == "/metrics" {
        let seconds = store.counts.values().sum::<usize>() as f64 / 1000.0;
        return respond(
            StatusCode::OK,
            format!("process_cpu_seconds_total {seconds}\n").into(),
        );
    }
    if !signed {
        return respond(StatusCode::FORBIDDEN, Bytes::new());
    }
    let object = store.objects.get(&path).cloned();
    match (method, object) {
        (Method::PUT, _) if fault == Fault::Full && store.counts[&Method::PUT] > 10 => {
            let error = "<?xml?><Error><Code>SlowDown</Code><Message>later</Message></Error>";
            respond(StatusCode::SERVICE_UNAVAILABLE, error.into())
        }
        (Method::PUT, _) => {
            store.objects.insert(path, body);
            respond(StatusCode::OK, Bytes::new())
        }
        (Method::DELETE, _) => {
            store.objects.remove(&path);
            respond(StatusCode::NO_CONTENT, Bytes::new())
        }
        (Method::GET, _) if path.ends_with('/') => respond(StatusCode::OK, "<ListBucketResult/>".into()),
        (_, Some(object)) if fault == Fault::Corrupt => {
            let mut wrong = object.to_vec();
            wrong[0] ^= 1;
            respond(StatusCode::OK, wrong.into())
        }
        (_, Some(object)) if fault == Fault::Short => {
            respond(StatusCode::OK, object.slice(..object.len() - 1))
        }
        (_, Some(object)) => respond(StatusCode::OK, object),
        (_, None) => respond(StatusCode::NOT_FOUND, Bytes::new()),
    }
}

#[tokio::test]
async fn every_operation_is_measured_and_nothing_stays() {
    let server = Server::start(Fault::None).await;
    let flags = "--sizes 0,1KiB,3MiB --concurrency 1,4 --ops put,get,head,delete,list,list-dirs --objects 20 --verify";
    let (report, result) = server.bench(flags).await;
    result.unwrap();
    let json = report.json();
    let cells = json["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 3 * 2 * 6);
    for cell in cells {
        assert!(cell["requests"].as_u64().unwrap() > 0, "{cell}");
        assert_eq!(cell["errors"], 0);
        assert!(cell["server_cpu_s"].as_f64().unwrap() > 0.0);
        let moves = cell["op"] == "put" || cell["op"] == "get";
        let bytes = if moves {
            cell["requests"].as_u64().unwrap() * cell["size_bytes"].as_u64().unwrap()
        } else {
            0
        };
        assert_eq!(cell["bytes"], bytes);
        if cell["op"] == "delete" {
            assert_eq!(cell["requests"], 20);
        }
    }
    assert_eq!(report.text().lines().count(), 1 + cells.len());
    assert_eq!(server.left(), Vec::<String>::new());
}

#[tokio::test]
async fn two_servers_take_turns() {
    let (here, there) = (Server::start(Fault::None).await, Server::start(Fault::None).await);
    let flags = format!(
        "--against {} --rounds 3 --sizes 1KiB --concurrency 2 --ops put,get,delete --objects 10",
        there.endpoint
    );
    let (report, result) = here.bench(&flags).await;
    result.unwrap();
    let json = report.json();
    let cells = json["cells"].as_array().unwrap();
    let address = |server: &Server| server.endpoint.trim_start_matches("http://").to_owned();
    let seen: Vec<_> = cells
        .iter()
        .map(|cell| {
            (
                cell["op"].as_str().unwrap(),
                cell["endpoint"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected: Vec<_> = ["put", "get", "delete"]
        .into_iter()
        .flat_map(|op| [(op, address(&here)), (op, address(&there))])
        .collect();
    assert_eq!(seen, expected);
    let elapsed = cells[0]["elapsed_s"].as_f64().unwrap();
    assert!(
        (0.6..6.0).contains(&elapsed),
        "three turns of 200 ms, not {elapsed} s"
    );
    assert_eq!(cells[4]["requests"], 30, "deleted ten in each of three turns");
    assert!(cells[0]["server_cpu_s"].is_number() && cells[1]["server_cpu_s"].is_null());
    assert_eq!(report.text().lines().count(), 1 + 3 * 3);
    assert_eq!((here.left(), there.left()), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_mix_is_one_cell() {
    let server = Server::start(Fault::None).await;
    let (report, result) = server
        .bench("--sizes 1KiB --concurrency 4 --mix put=3,get=6,delete=1")
        .await;
    result.unwrap();
    let json = report.json();
    let ops: Vec<_> = json["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell["op"].as_str().unwrap())
        .collect();
    assert_eq!(ops, ["put", "get", "delete", "all"]);
    assert_eq!(server.left(), Vec::<String>::new());
}

#[tokio::test]
async fn keep_keeps_within_bounds() {
    let server = Server::start(Fault::None).await;
    let flags = "--sizes 4KiB --concurrency 2 --ops put,get --objects 100 --working-set 40KiB --keep";
    server.bench(flags).await.1.unwrap();
    let left = server.left();
    assert_eq!(left.iter().filter(|path| path.contains("/read/")).count(), 10);
    assert_eq!(left.iter().filter(|path| path.contains("/written/")).count(), 10);
    assert!(left.contains(&"/cairn-bench/".to_owned()));
}

/// What was kept is read again, by another run, and stays.
#[tokio::test]
async fn what_was_kept_is_used_again() {
    let server = Server::start(Fault::None).await;
    let flags = "--sizes 4KiB --concurrency 2 --ops get --objects 10 --prefix mine/ --verify";
    server.bench(&format!("{flags} --keep")).await.1.unwrap();
    let (kept, puts) = (server.left(), server.count(Method::PUT));
    assert_eq!(kept.len(), 11, "ten objects and the bucket: {kept:?}");
    let (report, result) = server.bench(&format!("{flags} --reuse")).await;
    result.unwrap();
    assert_eq!(report.json()["cells"][0]["errors"], 0);
    assert_eq!((server.left(), server.count(Method::PUT)), (kept, puts));
    assert!(args("--reuse").is_err(), "reused what?");
}

#[tokio::test]
async fn wrong_bytes_are_errors_when_they_are_checked() {
    let server = Server::start(Fault::Corrupt).await;
    let flags = "--sizes 4KiB --concurrency 2 --ops get --objects 5";
    server.bench(flags).await.1.unwrap();
    let (report, result) = server.bench(&format!("{flags} --verify")).await;
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("requests failed; the first: get: wrong bytes"),
        "{error}"
    );
    assert_eq!(report.json()["cells"][0]["requests"], 0);
    assert_eq!(server.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_short_body_is_an_error_always() {
    let server = Server::start(Fault::Short).await;
    let error = server
        .bench("--sizes 4KiB --ops get --objects 5")
        .await
        .1
        .unwrap_err()
        .to_string();
    assert!(error.contains("get: 1 bytes too few"), "{error}");
}

#[tokio::test]
async fn refusals_are_counted_and_quoted() {
    let server = Server::start(Fault::Full).await;
    let (report, result) = server
        .bench("--sizes 4KiB --concurrency 1 --ops put --objects 5")
        .await;
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("put: 503 Service Unavailable: SlowDown: later"),
        "{error}"
    );
    let json = report.json();
    assert_eq!(json["cells"][0]["requests"], 9, "the bucket's put is the tenth");
    assert!(json["errors"].as_u64().unwrap() > 0);
    assert_eq!(server.left(), Vec::<String>::new());
}

#[tokio::test]
async fn no_server_is_an_error() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let session = Session::new(args(&format!("--endpoint http://{nobody}")).unwrap()).unwrap();
    let (report, result) = session.run().await;
    assert!(result.unwrap_err().to_string().contains("cannot connect"));
    assert_eq!(report.text(), "");
}

#[test]
fn flags_parse() {
    let defaults = args("").unwrap();
    assert_eq!(defaults.sizes, [4 << 10, 64 << 10, 1 << 20, 16 << 20]);
    assert_eq!(defaults.concurrency, [1, 16]);
    assert_eq!(defaults.mixes(), [Mix::only(Op::Put), Mix::only(Op::Get)]);
    assert_eq!(args("--mix put=30,get=70").unwrap().mixes().len(), 1);
    for bad in [
        "--sizes 6GiB",
        "--sizes x",
        "--concurrency 0",
        "--concurrency 2000",
        "--ops post",
        "--mix put",
        "--mix put=1 --ops get",
        "--duration 0s",
        "--objects 0",
        "--rounds 0",
        "--against-access-key x",
        "--endpoint https://example.org",
    ] {
        assert!(args(bad).is_err(), "{bad}");
    }
}
