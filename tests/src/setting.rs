//! How much a run tests, from the environment; `tests/run --long` sets all of it.

use std::str::FromStr;

use ec_core::Scheme;

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

/// The scheme of clusters that do not ask for one (`CAIRN_TEST_SCHEME='lrc(12,2,2)'`); they get as many disks as it has shards.
pub fn scheme() -> Scheme {
    let text = std::env::var("CAIRN_TEST_SCHEME").unwrap_or_else(|_unset| "rs(4,2)".into());
    let scheme: Scheme = text
        .parse()
        .unwrap_or_else(|error| panic!("CAIRN_TEST_SCHEME: {error}"));
    // The tests take away all disks but those that small objects need, and expect that to be too few for the others.
    assert!(
        scheme.losses_survived() + 1 < scheme.data_shards() && scheme.total_shards() <= 20,
        "CAIRN_TEST_SCHEME={scheme}: the tests want more data shards than losses survived and one, and at most 20 disks"
    );
    scheme
}
