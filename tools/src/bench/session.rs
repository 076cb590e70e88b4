//! A run: for each size, sign and write the objects, measure cell after cell, remove the objects; whatever happens, remove them.

use super::content::Content;
use super::cpu::CpuSeconds;
use super::load::{Load, Outcome, drive};
use super::objects::{ObjectSet, mixed};
use super::plan::{Mix, Op, working_set};
use super::report::{self, Row};
use super::side::Side;
use super::{BenchArgs, BenchError};
use crate::size::format_size;
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
    /// The server, and perhaps one to compare it with.
    sides: Vec<Side>,
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

/// The objects of one size at one server.
struct Sets<'a> {
    side: &'a Side,
    read: Arc<ObjectSet>,
    written: Arc<ObjectSet>,
}

impl Session {
    /// Prepares a run; nothing is sent yet.
    pub fn new(args: BenchArgs) -> Result<Session, String> {
        let sides = Side::all(&args)?;
        let cells = args.mixes().len() * args.sizes.len() * args.concurrency.len();
        let turns = cells * sides.len() * args.rounds as usize;
        // indicatif hides itself when standard error is no terminal.
        let target = if args.json {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let millis = turns as u64 * args.duration.as_millis() as u64;
        let style =
            ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}").map_err(|e| e.to_string())?;
        let bar = ProgressBar::with_draw_target(Some(millis), target).with_style(style);
        let of_its_own = || format!("bench-{:08x}/", rand::random::<u32>());
        let prefix = args.prefix.clone().unwrap_or_else(of_its_own);
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Session {
            args,
            sides,
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
            "against": self.args.against.as_ref().map(|against| &against.address),
            "rounds": self.args.rounds,
            "bucket": self.args.bucket,
            "duration_s": self.args.duration.as_secs_f64(),
            "verify": self.args.verify,
            "objects": self.args.objects,
            "working_set_bytes": self.args.working_set,
        })
    }

    async fn run_in_bucket(&self, report: &mut Report) -> Result<(), BenchError> {
        let mut created = Vec::new();
        let mut result = Ok(());
        for side in &self.sides {
            match side.create_bucket().await {
                Ok(true) => created.push(side),
                Ok(false) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        for &size in &self.args.sizes {
            if result.is_err() || self.stop.load(Ordering::Relaxed) {
                break;
            }
            result = self.run_size(size, report).await;
        }
        for side in created.into_iter().filter(|_| !self.args.keep) {
            result = result.and(side.delete_bucket().await);
        }
        result
    }

    /// All cells of one size.
    async fn run_size(&self, size: u64, report: &mut Report) -> Result<(), BenchError> {
        let all: Vec<Sets<'_>> = self.sides.iter().map(|side| self.sign(side, size)).collect();
        let measured = self.measure_size(size, &all, report).await;
        if self.args.keep {
            return measured;
        }
        self.bar
            .set_message(format!("removing the objects of {}", format_size(size)));
        // Also what may never have been written: a delete of nothing is no error.
        let mut removed = Ok(());
        for sets in &all {
            let read = (!self.args.reuse).then_some(&sets.read);
            for set in read.into_iter().chain([&sets.written]) {
                removed = removed.and(self.for_each(sets.side, set, Op::Delete, Arc::default()).await);
            }
        }
        measured.and(removed)
    }

    fn sign<'a>(&self, side: &'a Side, size: u64) -> Sets<'a> {
        let count = working_set(self.args.objects, size, self.args.working_set);
        let set = |name: &str, first: u32, ops: &[Op]| {
            let prefix = format!("{}{size}/{name}/", self.prefix);
            Arc::new(ObjectSet::new(
                &side.signer,
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
        let reads: Vec<Op> = [Op::Get, Op::Head, Op::List, Op::ListDirs]
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
            side,
            read: set("read", 0, &read),
            written: set("written", count, &written),
        }
    }

    async fn measure_size(&self, size: u64, all: &[Sets<'_>], report: &mut Report) -> Result<(), BenchError> {
        self.bar
            .set_message(format!("writing objects of {}", format_size(size)));
        for sets in all.iter().filter(|_| !self.args.reuse) {
            // Without operations that read, the set has no requests and this does nothing.
            self.for_each(sets.side, &sets.read, Op::Put, self.stop.clone())
                .await?;
        }
        for mix in self.args.mixes() {
            for &concurrency in &self.args.concurrency {
                let concurrency = usize::from(concurrency);
                let Some(cells) = self.measure_in_turns(&mix, size, concurrency, all).await? else {
                    return Ok(());
                };
                for (sets, (outcome, cpu)) in all.iter().zip(cells) {
                    report.errors += outcome.errors();
                    report.first_error = report.first_error.take().or_else(|| outcome.first_error.clone());
                    let endpoint = &sets.side.endpoint.address;
                    report
                        .rows
                        .extend(report::rows(endpoint, &mix, size, concurrency, &outcome, cpu));
                }
            }
        }
        Ok(())
    }

    /// One cell at every server, in turns. None if somebody wants it to end.
    async fn measure_in_turns(
        &self,
        mix: &Mix,
        size: u64,
        concurrency: usize,
        all: &[Sets<'_>],
    ) -> Result<Option<Vec<(Outcome, CpuSeconds)>>, BenchError> {
        let mut cells: Vec<Option<(Outcome, CpuSeconds)>> = all.iter().map(|_| None).collect();
        for _ in 0..self.args.rounds {
            for (sets, cell) in all.iter().zip(&mut cells) {
                if *mix == Mix::only(Op::Delete) {
                    self.for_each(sets.side, &sets.written, Op::Put, self.stop.clone())
                        .await?;
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let (outcome, cpu) = self.measure(mix, size, concurrency, sets).await?;
                match cell {
                    Some((total, total_cpu)) => {
                        total.merge(outcome);
                        *total_cpu = total_cpu.plus(cpu);
                    }
                    None => *cell = Some((outcome, cpu)),
                }
            }
        }
        Ok(Some(cells.into_iter().flatten().collect()))
    }

    /// One turn of a cell.
    async fn measure(
        &self,
        mix: &Mix,
        size: u64,
        concurrency: usize,
        sets: &Sets<'_>,
    ) -> Result<(Outcome, CpuSeconds), BenchError> {
        let source = mixed(mix.clone(), sets.read.clone(), sets.written.clone(), concurrency);
        let load = Load {
            endpoint: sets.side.endpoint.clone(),
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
        let before = sets.side.cpu().await;
        let outcome = drive(&load, source, progress).await.map_err(BenchError::Server)?;
        let cpu = sets.side.cpu().await.since(before);
        self.bar.set_position(start + millis(self.args.duration));
        Ok((outcome, cpu))
    }

    /// Does something to every object of a set, outside of the measurement.
    async fn for_each(
        &self,
        side: &Side,
        set: &Arc<ObjectSet>,
        op: Op,
        stop: Arc<AtomicBool>,
    ) -> Result<(), BenchError> {
        let load = Load {
            endpoint: side.endpoint.clone(),
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
