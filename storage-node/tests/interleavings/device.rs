//! The parts of `device` that threads share, as they are in `src/device`.

#[path = "../../src/device/buffer.rs"]
#[allow(dead_code)]
mod buffer;
#[path = "../../src/device/completion.rs"]
#[allow(dead_code)]
mod completion;
mod completions;
#[path = "../../src/device/pool.rs"]
#[allow(dead_code)]
mod pool;
mod pools;

pub use completion::{Completer, Completion, completion};
pub use storage_node::device::{BLOCK, DeviceError, DeviceErrorKind};
