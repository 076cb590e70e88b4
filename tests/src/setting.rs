//! How much a run tests, from the environment; `tests/run --long` sets all of it.

use std::str::FromStr;

/// Whether everything is to be tested (`CAIRN_TEST_LONG=1`), or what fits into minutes.
pub fn long() -> bool {
    number("CAIRN_TEST_LONG", 0) == 1
}

/// `short`, unless everything is to be tested.
pub fn scaled<T>(short: T, everything: T) -> T {
    if long() { everything } else { short }
}

/// A number from the environment, or a default.
pub fn number<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_unset) => default,
    }
}
