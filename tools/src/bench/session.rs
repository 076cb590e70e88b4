//! A run: for each size, sign and write the objects, measure cell after cell, remove the objects; whatever happens, remove them.

use super::client::{Connection, refusal};
use super::content::Content;
use super::cpu::CpuSeconds;
use super::load::{Load, Outcome, drive};
use super::objects::{ObjectSet, mixed};
use super::plan::{Mix, Op, working_set};
use super::report::{self, Row};
use super::signer::Signer;
use super::{BenchArgs, BenchError};
use crate::size::format_size;
use http::{Method, StatusCode};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Connections that write and remove the objects outside of the measurement.
const PREPARING_CONNECTIONS: usize = 16;

/// The seed of all objects' bytes.
const CONTENT_SEED: u64 = 0xCA1;

/// Everything a run needs.
pub struct Session {
    args: BenchArgs,
    signer: Signer,
    content: Content,
    /// Of this run's keys, so that runs do not meet.
    prefix: String,
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

/// What a run found.
#[derive(Debug)]
pub struct Report {
    about: Value,
    rows: Vec<Row>,
    errors: u64,
    first_error: Option<String>,
}

impl Report {
    /// The results for machines.
    pub fn json(&self) -> Value {
        let mut report = self.about.clone();
        report["cells"] = self.rows.iter().map(Row::json).collect();
        report["errors"] = self.errors.into();
        report["first_error"] = self.first_error.clone().into();
        report
    }

    /// The results for people.
    pub fn text(&self) -> String {
        if self.rows.is_empty() {
            String::new()
        } else {
            report::table(&self.rows)
        }
    }
}

/// The objects of one size.
struct Sets {
    read: Arc<ObjectSet>,
    written: Arc<ObjectSet>,
}

impl Session {
    /// Prepares a run; nothing is sent yet.
    pub fn new(args: BenchArgs) -> Result<Session, String> {
        let signer = Signer::new(
            &args.endpoint,
            &args.bucket,
            &args.region,
            &args.access_key,
            &args.secret_key,
        )?;
        let cells = args.mixes().len() * args.sizes.len() * args.concurrency.len();
        // indicatif hides itself when standard error is no terminal.
        let target = if args.json {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let millis = cells as u64 * args.duration.as_millis() as u64;
        let style =
            ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}").map_err(|e| e.to_string())?;
        let bar = ProgressBar::with_draw_target(Some(millis), target).with_style(style);
        let prefix = format!("bench-{:08x}/", rand::random::<u32>());
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Session {
            args,
            signer,
            content: Content::new(CONTENT_SEED),
            prefix,
            bar,
            stop,
        })
    }

    /// The first Ctrl-C ends the measurement and cleans up, the second one ends the process.
    pub fn stop_on_ctrl_c(&self) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    }

    /// Runs all of it. The report has what was measured, also when the result is an error.
    pub async fn run(&self) -> (Report, Result<(), BenchError>) {
        let mut report = Report {
            about: self.about(),
            rows: Vec::new(),
            errors: 0,
            first_error: None,
        };
        let result = self.run_in_bucket(&mut report).await;
        self.bar.finish_and_clear();
        let failed = |first: &String| BenchError::Requests {
            errors: report.errors,
            first: first.clone(),
        };
        let result = result.and(match &report.first_error {
            Some(first) => Err(failed(first)),
            None if self.stop.load(Ordering::Relaxed) => Err(BenchError::Interrupted),
            None => Ok(()),
        });
        (report, result)
    }

    fn about(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "endpoint": self.args.endpoint.address,
            "bucket": self.args.bucket,
            "duration_s": self.args.duration.as_secs_f64(),
            "verify": self.args.verify,
            "objects": self.args.objects,
            "working_set_bytes": self.args.working_set,
        })
    }

    async fn run_in_bucket(&self, report: &mut Report) -> Result<(), BenchError> {
        let mut connection = Connection::new(self.args.endpoint.clone());
        let created = self.create_bucket(&mut connection).await?;
        let mut result = Ok(());
        for &size in &self.args.sizes {
            result = self.run_size(size, report).await;
            if result.is_err() || self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        if created && !self.args.keep {
            result = result.and(self.delete_bucket(&mut connection).await);
        }
        result
    }

    /// Creates the bucket if there is none; says whether it did.
    async fn create_bucket(&self, connection: &mut Connection) -> Result<bool, BenchError> {
        let head = connection.ask(Method::HEAD, self.signer.head_bucket()).await;
        match head.map_err(BenchError::Server)? {
            (StatusCode::OK, _) => return Ok(false),
            (StatusCode::NOT_FOUND, _) => {}
            (status, _) => {
                return Err(BenchError::Server(format!(
                    "looking for bucket {}: {status}",
                    self.args.bucket
                )));
            }
        }
        match connection
            .ask(Method::PUT, self.signer.create_bucket())
            .await
            .map_err(BenchError::Server)?
        {
            (StatusCode::OK, _) => Ok(true),
            (status, text) => Err(BenchError::Server(format!(
                "creating the bucket: {}",
                refusal(status, &text)
            ))),
        }
    }

    async fn delete_bucket(&self, connection: &mut Connection) -> Result<(), BenchError> {
        match connection
            .ask(Method::DELETE, self.signer.delete_bucket())
            .await
            .map_err(BenchError::Server)?
        {
            (StatusCode::NO_CONTENT, _) => Ok(()),
            (status, text) => Err(BenchError::Server(format!(
                "removing the bucket: {}",
                refusal(status, &text)
            ))),
        }
    }

    /// All cells of one size.
    async fn run_size(&self, size: u64, report: &mut Report) -> Result<(), BenchError> {
        let sets = self.sign(size);
        let measured = self.measure_size(size, &sets, report).await;
        if self.args.keep {
            return measured;
        }
        self.bar
            .set_message(format!("removing the objects of {}", format_size(size)));
        // Also what may never have been written: a delete of nothing is no error.
        let mut removed = Ok(());
        for set in [&sets.read, &sets.written] {
            removed = removed.and(self.for_each(set, Op::Delete, Arc::default()).await);
        }
        measured.and(removed)
    }

    fn sign(&self, size: u64) -> Sets {
        let count = working_set(self.args.objects, size, self.args.working_set);
        let set = |name: &str, first: u32, ops: &[Op]| {
            let prefix = format!("{}{size}/{name}/", self.prefix);
            Arc::new(ObjectSet::new(
                &self.signer,
                &self.content,
                &prefix,
                first,
                count,
                size,
                ops,
            ))
        };
        // Only what is going to be asked for: signing takes time and room.
        let wanted = |op: Op| self.args.mixes().iter().any(|mix| mix.has(op));
        let reads: Vec<Op> = [Op::Get, Op::Head, Op::List]
            .into_iter()
            .filter(|&op| wanted(op))
            .collect();
        let count_if = |needed: bool| {
            if needed {
                vec![Op::Put, Op::Delete]
            } else {
                Vec::new()
            }
        };
        let read = [count_if(!reads.is_empty()), reads].concat();
        let written = count_if(wanted(Op::Put) || wanted(Op::Delete));
        Sets {
            read: set("read", 0, &read),
            written: set("written", count, &written),
        }
    }

    async fn measure_size(&self, size: u64, sets: &Sets, report: &mut Report) -> Result<(), BenchError> {
        self.bar
            .set_message(format!("writing objects of {}", format_size(size)));
        // Without operations that read, the set has no requests and this does nothing.
        self.for_each(&sets.read, Op::Put, self.stop.clone()).await?;
        for mix in self.args.mixes() {
            for &concurrency in &self.args.concurrency {
                if mix == Mix::only(Op::Delete) {
                    self.for_each(&sets.written, Op::Put, self.stop.clone()).await?;
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let (outcome, cpu) = self.measure(&mix, size, concurrency.into(), sets).await?;
                report.errors += outcome.errors();
                report.first_error = report.first_error.take().or_else(|| outcome.first_error.clone());
                report
                    .rows
                    .extend(report::rows(&mix, size, concurrency.into(), &outcome, cpu));
            }
        }
        Ok(())
    }

    /// One cell.
    async fn measure(
        &self,
        mix: &Mix,
        size: u64,
        concurrency: usize,
        sets: &Sets,
    ) -> Result<(Outcome, CpuSeconds), BenchError> {
        let source = mixed(mix.clone(), sets.read.clone(), sets.written.clone(), concurrency);
        let load = Load {
            endpoint: self.args.endpoint.clone(),
            concurrency,
            duration: Some(self.args.duration),
            verify: self.args.verify,
            stop: self.stop.clone(),
        };
        let start = self.bar.position();
        let millis = |time: Duration| time.min(self.args.duration).as_millis() as u64;
        let progress = |elapsed: Duration, done: u64| {
            self.bar.set_position(start + millis(elapsed));
            let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
            self.bar.set_message(format!(
                "{mix} {} × {concurrency}: {rate:.0} req/s",
                format_size(size)
            ));
        };
        let before = CpuSeconds::now(&self.args.admin).await;
        let outcome = drive(&load, source, progress).await.map_err(BenchError::Server)?;
        let cpu = CpuSeconds::now(&self.args.admin).await.since(before);
        self.bar.set_position(start + millis(self.args.duration));
        Ok((outcome, cpu))
    }

    /// Does something to every object of a set, outside of the measurement.
    async fn for_each(&self, set: &Arc<ObjectSet>, op: Op, stop: Arc<AtomicBool>) -> Result<(), BenchError> {
        let load = Load {
            endpoint: self.args.endpoint.clone(),
            concurrency: PREPARING_CONNECTIONS,
            duration: None,
            verify: false,
            stop,
        };
        let outcome = drive(&load, set.each(op), |_, _| ())
            .await
            .map_err(BenchError::Server)?;
        let errors = outcome.errors();
        outcome
            .first_error
            .map_or(Ok(()), |first| Err(BenchError::Requests { errors, first }))
    }
}
