//! The per-request counters, one [`RequestSeries`] per label set, resolved once per connection, route and server.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::labels::{NONE, OTHER, Reporter, RequestLabels, RequestOutcome, put};
use super::metrics::DURATION_BUCKETS;
use super::series::{NO_EXEMPLAR, encode_one};
use super::store::{Counters, Store};

/// Different answers that one label set counts apart. Applications choose their statuses: beyond it they are `other`.
const MAX_ANSWERS: usize = 48;
/// The greatest status of gRPC.
const GRPC_MAX: u8 = 16;

/// What a request was answered, as far as it is counted by it. Small, closed sets: whatever else an application says
/// is [`OTHER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status; `None`: there was no answer.
    pub status: Option<u16>,
    /// The status of gRPC, where there is one.
    pub grpc: Option<GrpcStatus>,
    /// How it ended.
    pub outcome: RequestOutcome,
}

/// A status of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatus {
    /// One that gRPC knows.
    Known(u8),
    /// Anything else.
    Other,
}

impl GrpcStatus {
    /// The number, of one that gRPC knows.
    #[must_use]
    pub fn number(self) -> Option<u8> {
        match self {
            Self::Known(number) => Some(number),
            Self::Other => None,
        }
    }

    /// What the value of `grpc-status` says.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u8>().ok());
        number.filter(|number| *number <= GRPC_MAX).map_or(Self::Other, Self::Known)
    }
}

/// The first digit of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class(usize);

impl Class {
    const WORDS: [&str; 6] = [NONE, "1xx", "2xx", "3xx", "4xx", "5xx"];

    fn of(status: Option<u16>) -> Self {
        let digit = status.map_or(0, |status| usize::from(status / 100));
        // hyper takes statuses up to 999; those that HTTP does not define are failures.
        Self(digit.min(Self::WORDS.len() - 1))
    }

    fn as_str(self) -> &'static str {
        Self::WORDS.get(self.0).copied().unwrap_or(OTHER)
    }
}

/// Durations by [`DURATION_BUCKETS`], and the rest.
#[derive(Debug, Default)]
pub(super) struct Durations {
    counts: [AtomicU64; DURATION_BUCKETS.len() + 1],
    sum_ns: AtomicU64,
}

impl Durations {
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = DURATION_BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum_ns.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Sum in seconds, count, and the counts of each bucket by itself.
    fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = DURATION_BUCKETS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(&self.counts).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (Duration::from_nanos(self.sum_ns.load(Relaxed)).as_secs_f64(), count, buckets)
    }
}

/// What the agent itself adds to requests, by the side that reports.
#[derive(Debug, Default)]
pub(super) struct OwnTime {
    inbound: Durations,
    outbound: Durations,
}

impl OwnTime {
    pub(super) fn of(&self, reporter: Reporter) -> &Durations {
        match reporter {
            Reporter::Inbound => &self.inbound,
            Reporter::Outbound => &self.outbound,
        }
    }
}

/// The counters of one label set.
#[derive(Debug, Default)]
pub struct RequestSeries {
    responses: RwLock<Vec<(Response, AtomicU64)>>,
    durations: [Durations; Class::WORDS.len()],
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    retries: AtomicU64,
    touched: AtomicU64,
}

impl Counters for RequestSeries {
    fn touched(&self) -> &AtomicU64 {
        &self.touched
    }
}

/// What is counted of one request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Its answer.
    pub response: Response,
    /// From its head to its answer's end.
    pub duration: Duration,
    /// Bytes of its body.
    pub request_bytes: u64,
    /// Bytes of its answer's body.
    pub response_bytes: u64,
    /// How often it was sent again.
    pub retries: u32,
}

impl RequestSeries {
    /// Counts one request.
    pub fn count(&self, request: &Counted) {
        self.answered(request.response);
        if let Some(durations) = self.durations.get(Class::of(request.response.status).0) {
            durations.observe(request.duration);
        }
        for (counter, more) in [
            (&self.request_bytes, request.request_bytes),
            (&self.response_bytes, request.response_bytes),
            (&self.retries, request.retries.into()),
        ] {
            if more > 0 {
                counter.fetch_add(more, Relaxed);
            }
        }
    }

    fn answered(&self, response: Response) {
        let counted = |responses: &[(Response, AtomicU64)], response: Response| {
            let found = responses.iter().find(|(one, _)| *one == response);
            found.map(|(_, count)| count.fetch_add(1, Relaxed)).is_some()
        };
        if counted(&self.responses.read().unwrap_or_else(PoisonError::into_inner), response) {
            return;
        }
        let mut responses = self.responses.write().unwrap_or_else(PoisonError::into_inner);
        let response = if responses.len() < MAX_ANSWERS {
            response
        } else {
            // No HTTP status is 0.
            Response {
                status: response.status.and(Some(0)),
                grpc: response.grpc.and(Some(GrpcStatus::Other)),
                ..response
            }
        };
        if !counted(&responses, response) {
            responses.push((response, AtomicU64::new(1)));
        }
    }
}

/// The series of requests.
pub type RequestStore = Store<RequestLabels, RequestSeries>;

struct Answered<'a>(&'a RequestLabels, Response);

impl EncodeLabelSet for Answered<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        self.0.encode(encoder)?;
        match self.1.status {
            None => put(encoder, "status", &NONE)?,
            Some(0) => put(encoder, "status", &OTHER)?,
            Some(status) => put(encoder, "status", &u32::from(status))?,
        }
        match self.1.grpc {
            None => put(encoder, "grpc_status", &NONE)?,
            Some(GrpcStatus::Other) => put(encoder, "grpc_status", &OTHER)?,
            Some(GrpcStatus::Known(status)) => put(encoder, "grpc_status", &u32::from(status))?,
        }
        put(encoder, "outcome", &self.1.outcome)
    }
}

struct OfClass<'a>(&'a RequestLabels, Class);

impl EncodeLabelSet for OfClass<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        self.0.encode(encoder)?;
        put(encoder, "class", &self.1.as_str())
    }
}

/// Registered with the registry; shares the store with the data path.
#[derive(Debug)]
pub(super) struct RequestCollector(pub Arc<RequestStore>, pub Arc<OwnTime>);

impl RequestCollector {
    fn answers(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "Requests that are over, by their answer and how they ended";
        let mut family = encoder.encode_descriptor("mesh_requests", help, None, MetricType::Counter)?;
        for (labels, series) in self.0.series().iter() {
            for (response, count) in series.responses.read().unwrap_or_else(PoisonError::into_inner).iter() {
                encode_one(&mut family, &Answered(labels, *response), count.load(Relaxed))?;
            }
        }
        Ok(())
    }

    fn durations(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "From a request's head to its answer's end, by the class of its status";
        let (name, unit) = ("mesh_request_duration", Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, series) in self.0.series().iter() {
            for (class, durations) in series.durations.iter().enumerate() {
                let (sum, count, buckets) = durations.read();
                if count > 0 {
                    let labels = OfClass(labels, Class(class));
                    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                }
            }
        }
        Ok(())
    }

    fn own_time(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "The agent's own part of the time from a request's head to that of its answer";
        let (name, unit) = ("mesh_request_own_duration", Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for reporter in [Reporter::Inbound, Reporter::Outbound] {
            let (sum, count, buckets) = self.1.of(reporter).read();
            let labels = [("reporter", reporter.as_str())];
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn sums(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit): (&str, &str, Option<&Unit>),
        value: impl Fn(&RequestSeries) -> &AtomicU64,
    ) -> std::fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        let series = self.0.series();
        series.iter().try_for_each(|(labels, one)| encode_one(&mut family, labels, value(one).load(Relaxed)))
    }
}

impl Collector for RequestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.answers(&mut encoder)?;
        self.durations(&mut encoder)?;
        self.own_time(&mut encoder)?;
        let sent = ("mesh_request_body", "Bytes of requests' bodies", Some(&Unit::Bytes));
        self.sums(&mut encoder, sent, |series| &series.request_bytes)?;
        let received = ("mesh_response_body", "Bytes of answers' bodies", Some(&Unit::Bytes));
        self.sums(&mut encoder, received, |series| &series.response_bytes)?;
        let retries = ("mesh_request_retries", "Times that requests were sent again by a route's rule", None);
        self.sums(&mut encoder, retries, |series| &series.retries)?;
        let help = "Look-ups under `other` because the number of label sets of requests reached its bound";
        let name = "mesh_requests_series_overflow";
        let mut overflow = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        overflow.encode_counter(&self.0.overflowed(), NO_EXEMPLAR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: Option<u16>) -> Response {
        Response { status, grpc: None, outcome: RequestOutcome::Ok }
    }

    #[test]
    fn a_status_of_grpc_is_one_that_grpc_knows() {
        for (value, expected) in [
            ("0", GrpcStatus::Known(0)),
            ("16", GrpcStatus::Known(16)),
            ("17", GrpcStatus::Other),
            ("-1", GrpcStatus::Other),
            ("", GrpcStatus::Other),
            ("OK", GrpcStatus::Other),
        ] {
            assert_eq!(GrpcStatus::parse(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn a_class_is_a_first_digit() {
        for (status, word) in
            [(None, "none"), (Some(101), "1xx"), (Some(204), "2xx"), (Some(599), "5xx"), (Some(999), "5xx")]
        {
            assert_eq!(Class::of(status).as_str(), word, "{status:?}");
        }
    }

    #[test]
    fn statuses_beyond_the_bound_are_counted_as_other() {
        let series = RequestSeries::default();
        for status in 200..200 + u16::try_from(MAX_ANSWERS).unwrap() + 10 {
            series.answered(response(Some(status)));
        }
        series.answered(response(Some(200)));
        let responses = series.responses.read().unwrap();
        assert_eq!(responses.len(), MAX_ANSWERS + 1);
        let count = |status| responses.iter().find(|(one, _)| one.status == Some(status)).unwrap().1.load(Relaxed);
        assert_eq!((count(0), count(200)), (10, 2));
    }

    #[test]
    fn a_duration_is_in_the_first_bucket_that_holds_it() {
        let durations = Durations::default();
        for microseconds in [50, 100, 101, 20_000_000] {
            durations.observe(Duration::from_micros(microseconds));
        }
        let (sum, count, buckets) = durations.read();
        assert_eq!(count, 4);
        assert!((sum - 20.000_251).abs() < 1e-9, "{sum}");
        assert_eq!((buckets[0], buckets[1].1, buckets[16]), ((0.0001, 2), 1, (f64::INFINITY, 1)));
    }
}
