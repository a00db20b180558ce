//! Arguments about the bounds of the http lane.

use std::ops::RangeInclusive;

use crate::proxy::HttpLimits;

/// As they stand on the command line or in the environment, not yet checked.
#[derive(Clone, Debug, clap::Args)]
pub struct HttpArgs {
    /// Largest head of a request that the http lane lets through, in bytes; beyond it 431.
    #[arg(long, env = "MESH_MAX_HEAD_BYTES", default_value_t = of(|limits| limits.head_bytes))]
    max_head_bytes: String,
    /// Requests at once on one HTTP/2 connection of an application.
    #[arg(long, env = "MESH_MAX_STREAMS", default_value_t = of(|limits| limits.streams as usize))]
    max_streams: String,
    /// Requests at once of one pod in the http lane, in both directions; beyond it 503.
    #[arg(long, env = "MESH_MAX_REQUESTS_PER_POD", default_value_t = of(|limits| limits.requests_per_pod))]
    max_requests_per_pod: String,
    /// Bytes of a request's body that are kept to send it again; longer ones are sent once.
    #[arg(long, env = "MESH_REPLAY_BYTES", default_value_t = of(|limits| limits.replay_bytes))]
    replay_bytes: String,
    /// The same for all requests of a pod at once.
    #[arg(long, env = "MESH_REPLAY_BYTES_PER_POD", default_value_t = of(|limits| limits.replay_bytes_per_pod))]
    replay_bytes_per_pod: String,
    /// Name the AuthorizationPolicy that denies a request in its answer (`x-mesh-agent-policy`). The log names it
    /// always; clients of other teams need not know which rules there are.
    #[arg(long, env = "MESH_TELL_POLICY")]
    tell_policy: bool,
}

/// The default of one of them, as text.
fn of(limit: fn(&HttpLimits) -> usize) -> String {
    limit(&HttpLimits::default()).to_string()
}

impl HttpArgs {
    /// Checks them; adds what is wrong to `errors`.
    pub(super) fn check(&self, errors: &mut Vec<String>) -> HttpLimits {
        let mut number = |option: &str, text: &str, range: RangeInclusive<usize>| {
            text.parse().ok().filter(|number| range.contains(number)).unwrap_or_else(|| {
                errors.push(format!("{option} `{text}`: not a number within {}-{}", range.start(), range.end()));
                *range.start()
            })
        };
        // Common clients send heads of up to 8 KiB; h2 derives from this what it reads of one head.
        let head_bytes = number("--max-head-bytes", &self.max_head_bytes, 8 << 10..=1 << 20);
        let streams = number("--max-streams", &self.max_streams, 1..=100_000);
        HttpLimits {
            head_bytes,
            streams: u32::try_from(streams).unwrap_or(u32::MAX),
            requests_per_pod: number("--max-requests-per-pod", &self.max_requests_per_pod, 1..=10_000_000),
            tell_policy: self.tell_policy,
            replay_bytes: number("--replay-bytes", &self.replay_bytes, 0..=64 << 20),
            replay_bytes_per_pod: number("--replay-bytes-per-pod", &self.replay_bytes_per_pod, 0..=4 << 30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        http: HttpArgs,
    }

    fn check(args: &[&str]) -> (HttpLimits, Vec<String>) {
        let mut errors = Vec::new();
        let cli = Cli::try_parse_from(["mesh-agent"].iter().chain(args)).expect("clap takes it");
        (cli.http.check(&mut errors), errors)
    }

    #[test]
    fn nothing_given_is_the_defaults_and_mistakes_are_named() {
        assert_eq!(check(&[]), (HttpLimits::default(), vec![]));
        let (limits, errors) = check(&["--max-streams", "5", "--max-head-bytes", "10", "--replay-bytes", "64k"]);
        assert_eq!((limits.streams, limits.tell_policy, errors.len()), (5, false, 2), "{errors:?}");
        assert!(check(&["--tell-policy"]).0.tell_policy);
        assert!(errors[0].starts_with("--max-head-bytes `10`: not a number within 8192-"), "{errors:?}");
    }
}
