//! What commands say on standard output and standard error.
//!
//! Either may be a full filesystem or a pipe whose reader is gone. That ends no process: what cannot be said is lost, and a command
//! whose answer is lost fails at its end. A reader that has read enough (`cairn disk list | head -1`) is no failure.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

static FAILED: OnceLock<io::Error> = OnceLock::new();

/// A line on standard output.
macro_rules! say {
    ($($what:tt)*) => { $crate::output::out(format_args!("{}\n", format_args!($($what)*))) };
}

/// Text on standard output as it is.
macro_rules! show {
    ($($what:tt)*) => { $crate::output::out(format_args!($($what)*)) };
}

/// A line on standard error, of a command; what runs on logs instead.
macro_rules! complain {
    ($($what:tt)*) => { $crate::output::err(format_args!("{}\n", format_args!($($what)*))) };
}

/// A line on standard output, of what runs on after it.
macro_rules! greet {
    ($($what:tt)*) => { $crate::output::welcome(format_args!("{}\n", format_args!($($what)*))) };
}

pub(crate) use {complain, greet, say, show};

fn write(text: Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush())
}

/// See [`say`].
pub fn out(text: Arguments<'_>) {
    if let Err(error) = write(text) {
        let _first_counts = FAILED.set(error);
    }
}

/// See [`complain`].
pub fn err(text: Arguments<'_>) {
    let _nobody_to_tell = io::stderr().lock().write_fmt(text);
}

/// See [`greet`].
pub fn welcome(text: Arguments<'_>) {
    if let Err(error) = write(text) {
        tracing::warn!(%error, "standard output cannot be written, and nothing was said there");
    }
}

/// Why the answer of a command did not arrive, if it did not.
pub fn failed() -> Option<&'static io::Error> {
    FAILED.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}
