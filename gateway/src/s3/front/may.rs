//! Whether a caller may do something. There is one owner, who may do everything; nobody else may do anything.

use super::operation::Operation;
use super::refusal::Refusal;
use super::who::Caller;

/// Refuses what the caller may not do.
pub fn check(caller: &Caller, operation: &Operation) -> Result<(), Refusal> {
    match caller {
        Caller::Key(_) => Ok(()),
        Caller::Anonymous => Err(Refusal::access_denied(format!(
            "{} is not for requests without a signature",
            operation.name
        ))),
    }
}
