//! What happened, for whoever looks at a seed that failed: the last events, with the simulated time. What the gateway logs is
//! among them.

use std::collections::VecDeque;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

/// Events that are kept.
const KEPT: usize = 20_000;

#[derive(Clone)]
pub struct Trace {
    begun: Instant,
    events: Arc<Mutex<VecDeque<String>>>,
}

impl Trace {
    /// Begins now.
    pub fn new(events: Arc<Mutex<VecDeque<String>>>) -> Trace {
        Trace {
            begun: Instant::now(),
            events,
        }
    }

    pub fn note(&self, what: impl AsRef<str>) {
        let at = self.begun.elapsed().as_secs_f64();
        let mut events = self.events.lock().unwrap_or_else(|e| e.into_inner());
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(format!("{at:10.4} {}", what.as_ref()));
    }
}

/// Takes in what is logged on this thread: at a current-thread runtime, by the gateway.
pub struct Log(pub Trace);

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        }; // Writing to a string does not fail.
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG && metadata.target().starts_with("gateway")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("  {}", event.metadata().target()));
        event.record(&mut line);
        self.0.note(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
