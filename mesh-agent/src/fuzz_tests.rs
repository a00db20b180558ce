//! Fuzzing: a property on random inputs until its time is over; what breaks it is made smaller and printed.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// Set by `cargo xtask test --long`.
const LONG: &str = "MESH_TEST_LONG";
/// Another time in seconds, for a target that one works on.
const SECONDS: &str = "MESH_FUZZ_SECONDS";
/// As much as every change is worth.
const SHORT_SECONDS: u64 = 1;
/// As much as is promised.
const LONG_SECONDS: u64 = 600;
/// Between two looks at the clock.
const ROUND: u32 = 64;

/// Puts inputs of `strategy` to `check`. A short run has the same inputs every time, on whatever machine, as far as its
/// time goes; a longer one begins with them.
///
/// # Panics
/// With the smallest input found for which `check` fails.
pub(crate) fn fuzz<S>(strategy: &S, check: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S: Strategy,
    S::Value: Debug,
{
    let until = Instant::now() + time();
    let config = Config { cases: ROUND, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    while Instant::now() < until {
        if let Err(error) = runner.run(strategy, &check) {
            panic!("{error}");
        }
    }
}

/// [`fuzz`] with what is made of a corpus: first each of it as it is.
///
/// # Panics
/// As [`fuzz`].
pub(crate) fn fuzz_bytes(corpus: Vec<Vec<u8>>, check: impl Fn(Vec<u8>) -> Result<(), TestCaseError>) {
    for bytes in &corpus {
        check(bytes.clone()).unwrap_or_else(|error| panic!("{}: {error}", bytes.escape_ascii()));
    }
    fuzz(&mutations(corpus), check);
}

fn time() -> Duration {
    let given = std::env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    let long = std::env::var_os(LONG).map_or(SHORT_SECONDS, |_| LONG_SECONDS);
    Duration::from_secs(given.unwrap_or(long))
}

/// Sensible inputs, cut up, mixed and disturbed.
pub(crate) fn mutations(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let pieces = proptest::collection::vec(edit(), 0..6);
    (proptest::sample::select(corpus.clone()), proptest::sample::select(corpus), pieces).prop_map(
        |(mut bytes, other, edits)| {
            for edit in edits {
                edit.apply(&mut bytes, &other);
            }
            bytes
        },
    )
}

/// One disturbance, at a place in the whole that is measured in parts of 65,536.
#[derive(Clone, Debug)]
enum Edit {
    Replace(u16, u8),
    Insert(u16, &'static str),
    Remove(u16, u8),
    Repeat(u16, u8),
    Splice(u16, u16, u8),
}

/// What parsers trip over.
const WORDS: [&str; 24] = [
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "\0",
    " ",
    "\t",
    "\x0b",
    ":",
    ",",
    ";",
    "0",
    "3",
    "ffffffffffffffff",
    "chunked",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n",
    "0\r\n\r\n",
    "Host: a\r\n",
    "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
    "Connection: ",
    "Upgrade: websocket\r\n",
    "HTTP/1.0",
];

fn edit() -> impl Strategy<Value = Edit> {
    use proptest::prelude::{any, prop_oneof};
    prop_oneof![
        any::<(u16, u8)>().prop_map(|(at, byte)| Edit::Replace(at, byte)),
        (any::<u16>(), proptest::sample::select(&WORDS[..])).prop_map(|(at, word)| Edit::Insert(at, word)),
        (any::<u16>(), 1..24_u8).prop_map(|(at, count)| Edit::Remove(at, count)),
        (any::<u16>(), 1..64_u8).prop_map(|(at, count)| Edit::Repeat(at, count)),
        (any::<u16>(), any::<u16>(), 1..64_u8).prop_map(|(at, from, count)| Edit::Splice(at, from, count)),
    ]
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>, other: &[u8]) {
        let place = |at: u16, length: usize| usize::from(at) * length / 65_536;
        let range =
            |at: u16, count: u8, length: usize| place(at, length)..(place(at, length) + usize::from(count)).min(length);
        match *self {
            Self::Replace(at, byte) => {
                let at = place(at, bytes.len());
                if let Some(there) = bytes.get_mut(at) {
                    *there = byte;
                }
            }
            Self::Insert(at, word) => {
                let at = place(at, bytes.len() + 1);
                bytes.splice(at..at, word.bytes());
            }
            Self::Remove(at, count) => {
                bytes.drain(range(at, count, bytes.len()));
            }
            Self::Repeat(at, count) => {
                let again = bytes[range(at, count, bytes.len())].to_vec();
                let at = place(at, bytes.len());
                bytes.splice(at..at, again);
            }
            Self::Splice(at, from, count) => {
                let at = place(at, bytes.len() + 1);
                bytes.splice(at..at, other[range(from, count, other.len())].iter().copied());
            }
        }
    }
}
