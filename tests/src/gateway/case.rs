//! One case: a request, from whom and to whom, and what must become of it.
//!
//! What the upstream suite compares is level U. Level S compares everything else that the API promises: where a
//! redirect leads, the path, host and method that the server got, and its namespace.

use std::collections::BTreeMap;
use std::fmt;

use super::answer::Answer;
use super::base::MESH;

/// Requests of the suite's cases about shares.
pub const SAMPLES: usize = 500;
/// Requests of any other case: at level U the first counts, at level S all, so that no luck of the balancer passes.
const REPEATS: usize = 6;
/// How far a share may be off.
const TOLERANCE: f64 = 0.05;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod of the servers' namespace: the first version's own where the placement has no other.
    Mesh,
    /// As `Mesh`, with the second version's pod.
    Second,
    /// A pod of the namespace that has no server.
    Consumer,
}

/// A request and its expectation, made by [`get`] and altered from there.
#[derive(Clone, Debug)]
pub struct Case {
    /// Who asks.
    pub from: Client,
    /// `http`, `h2c`, `grpc`, `tcp` or `upgrade`.
    pub scheme: &'static str,
    /// `NAME[:PORT]` as the client's namespace resolves it; `pod:DEPLOYMENT:PORT` for the pod's own address.
    pub to: String,
    /// Path and query.
    pub path: String,
    /// Method; a gRPC request has its own.
    pub method: &'static str,
    /// Headers; `Host` replaces the authority and nothing else.
    pub headers: Vec<(String, String)>,
    expected: Expected,
}

/// What must become of it.
#[derive(Clone, Debug, Default)]
struct Expected {
    status: u16,
    grpc_status: Option<u16>,
    backend: Option<&'static str>,
    /// Headers that the server gets (`None`: does not get).
    sent: Vec<(&'static str, Option<&'static str>)>,
    /// Headers of the answer; as `sent`.
    answered: Vec<(&'static str, Option<&'static str>)>,
    location: Option<&'static str>,
    /// Path and query that the server gets, where they are not the client's.
    path: Option<&'static str>,
    /// Host that the server gets, where it is not the client's.
    host: Option<&'static str>,
    /// Other facts that the server tells.
    facts: Vec<(&'static str, &'static str)>,
    /// Shares of so many requests, by backend or error status.
    shares: Vec<(&'static str, f64)>,
    samples: usize,
}

/// What was missed at each level; upstream's misses are misses of the strict level too.
#[derive(Debug, Default)]
pub struct Misses {
    /// Level U.
    pub upstream: Vec<String>,
    /// What only level S asks for.
    pub strict: Vec<String>,
}

/// `GET path` to the Service `echo`, from its own namespace; 200 from anybody is expected.
#[must_use]
pub fn get(path: &str) -> Case {
    Case {
        from: Client::Mesh,
        scheme: "http",
        to: "echo".to_owned(),
        path: path.to_owned(),
        method: "GET",
        headers: Vec::new(),
        expected: Expected { status: 200, ..Expected::default() },
    }
}

/// The gRPC method to port 7070 of the Service `echo`.
#[must_use]
pub fn call() -> Case {
    let mut case = get("/").to("echo:7070").scheme("grpc");
    case.expected.grpc_status = Some(0);
    case
}

impl Case {
    /// From another client.
    #[must_use]
    pub fn from(self, from: Client) -> Self {
        Self { from, ..self }
    }

    /// To another Service, port or pod.
    #[must_use]
    pub fn to(self, to: &str) -> Self {
        Self { to: to.to_owned(), ..self }
    }

    /// Of another path and query.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// In another protocol.
    #[must_use]
    pub fn scheme(self, scheme: &'static str) -> Self {
        Self { scheme, ..self }
    }

    /// With another method.
    #[must_use]
    pub fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The Deployment that must answer.
    #[must_use]
    pub fn by(mut self, backend: &'static str) -> Self {
        self.expected.backend = Some(backend);
        self
    }

    /// The status that must come back.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.expected.status = status;
        self
    }

    /// The gRPC status that must come back.
    #[must_use]
    pub fn grpc_status(mut self, status: u16) -> Self {
        self.expected.grpc_status = Some(status);
        self
    }

    /// A redirect by `status` to `location`.
    #[must_use]
    pub fn redirected(mut self, status: u16, location: &'static str) -> Self {
        self.expected.status = status;
        self.expected.location = Some(location);
        self
    }

    /// A header that the server must get.
    #[must_use]
    pub fn sent(mut self, name: &'static str, value: &'static str) -> Self {
        self.expected.sent.push((name, Some(value)));
        self
    }

    /// Headers that the server must not get.
    #[must_use]
    pub fn not_sent(mut self, names: &[&'static str]) -> Self {
        self.expected.sent.extend(names.iter().map(|name| (*name, None)));
        self
    }

    /// A header that the answer must have.
    #[must_use]
    pub fn answered(mut self, name: &'static str, value: &'static str) -> Self {
        self.expected.answered.push((name, Some(value)));
        self
    }

    /// A header that the answer must not have.
    #[must_use]
    pub fn not_answered(mut self, name: &'static str) -> Self {
        self.expected.answered.push((name, None));
        self
    }

    /// Path and query that the server must get instead of the client's.
    #[must_use]
    pub fn as_path(mut self, path: &'static str) -> Self {
        self.expected.path = Some(path);
        self
    }

    /// Host that the server must get instead of the client's.
    #[must_use]
    pub fn as_host(mut self, host: &'static str) -> Self {
        self.expected.host = Some(host);
        self
    }

    /// Another fact that the server must tell.
    #[must_use]
    pub fn fact(mut self, name: &'static str, value: &'static str) -> Self {
        self.expected.facts.push((name, value));
        self
    }

    /// Shares of `samples` requests, by Deployment, or by status where it is an error.
    #[must_use]
    pub fn shares(mut self, samples: usize, shares: &[(&'static str, f64)]) -> Self {
        self.expected.samples = samples;
        self.expected.shares = shares.to_vec();
        self
    }

    /// Whether it is about shares of its requests.
    #[must_use]
    pub fn has_shares(&self) -> bool {
        !self.expected.shares.is_empty()
    }

    /// How many requests it takes.
    #[must_use]
    pub fn requests(&self) -> usize {
        match self.expected.shares.is_empty() {
            false => self.expected.samples,
            // The server was asked to take its time.
            true if self.path.contains("delay=") => 1,
            true => REPEATS,
        }
    }

    /// What `answers` miss; `authority` is what the client asked for.
    #[must_use]
    pub fn judge(&self, answers: &[Answer], authority: &str) -> Misses {
        let mut misses = Misses::default();
        if answers.len() != self.requests() {
            misses.upstream.push(format!("{} of {} answers", answers.len(), self.requests()));
        }
        for (number, answer) in answers.iter().enumerate() {
            let first = number == 0 || self.has_shares();
            let before = misses.upstream.len() + misses.strict.len();
            self.judge_upstream(answer, if first { &mut misses.upstream } else { &mut misses.strict });
            self.judge_strictly(answer, authority, &mut misses.strict);
            if misses.upstream.len() + misses.strict.len() > before {
                let whole = if misses.upstream.is_empty() { &mut misses.strict } else { &mut misses.upstream };
                whole.push(format!("got {}", answer.summary()));
                return misses;
            }
        }
        self.judge_shares(answers, &mut misses.upstream);
        misses
    }

    fn judge_upstream(&self, answer: &Answer, misses: &mut Vec<String>) {
        let expected = &self.expected;
        let status = if answer.error.is_some() { 0 } else { answer.status };
        // A share of the requests may be an error's.
        if !expected.shares.iter().any(|(who, _)| *who == status.to_string()) {
            compare("status", &expected.status.to_string(), &status.to_string(), misses);
        }
        if let Some(wanted) = expected.grpc_status {
            compare("grpc-status", &wanted.to_string(), &answer.grpc_status.unwrap_or(99).to_string(), misses);
        }
        if let Some(backend) = expected.backend {
            compare("backend", backend, answer.backend(), misses);
        }
        headers("request header", &expected.sent, &answer.sent, misses);
        headers("response header", &expected.answered, &answer.headers, misses);
    }

    fn judge_strictly(&self, answer: &Answer, authority: &str, misses: &mut Vec<String>) {
        let expected = &self.expected;
        let location = answer.headers.get("location").map_or("", String::as_str);
        compare("location", expected.location.unwrap_or(""), location, misses);
        for (name, value) in &expected.facts {
            compare(name, value, answer.fact(name), misses);
        }
        if answer.backend().is_empty() {
            return;
        }
        compare("namespace", MESH, answer.fact("Namespace"), misses);
        if matches!(self.scheme, "http" | "h2c") {
            compare("path", expected.path.unwrap_or(&self.path), answer.fact("URL"), misses);
            compare("method", self.method, answer.fact("Method"), misses);
            compare("host", expected.host.unwrap_or(authority), answer.fact("Host"), misses);
        }
    }

    fn judge_shares(&self, answers: &[Answer], misses: &mut Vec<String>) {
        let mut seen: BTreeMap<String, f64> = BTreeMap::new();
        for answer in answers {
            let who = if answer.status == 200 { answer.backend().to_owned() } else { answer.status.to_string() };
            *seen.entry(who).or_default() += 1.0 / answers.len() as f64;
        }
        for (backend, share) in &self.expected.shares {
            let got = seen.get(*backend).copied().unwrap_or_default();
            if (got - share).abs() > TOLERANCE || got == 0.0 {
                misses.push(format!("{backend} got {got:.3} of the requests instead of {share}"));
            }
        }
        let strange = seen.keys().find(|name| self.expected.shares.iter().all(|(backend, _)| backend != name));
        if let (Some(strange), false) = (strange, self.expected.shares.is_empty()) {
            misses.push(format!("`{strange}` answered"));
        }
    }
}

fn compare(what: &str, wanted: &str, got: &str, misses: &mut Vec<String>) {
    if wanted != got {
        misses.push(format!("{what} `{got}` instead of `{wanted}`"));
    }
}

fn headers(what: &str, wanted: &[(&str, Option<&str>)], got: &BTreeMap<String, String>, misses: &mut Vec<String>) {
    for (name, value) in wanted {
        let found = got.get(&name.to_ascii_lowercase()).map(String::as_str);
        if found != *value {
            misses.push(format!("{what} {name} {found:?} instead of {value:?}"));
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} {}://{}{}", self.from, self.method, self.scheme, self.to, self.path)?;
        self.headers.iter().try_for_each(|(name, value)| write!(f, " {name}:{value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(backend: &str, path: &str) -> Answer {
        let facts = [
            ("Hostname", format!("{backend}-abc12-x1y2z")),
            ("Namespace", MESH.to_owned()),
            ("URL", path.to_owned()),
            ("Method", "GET".to_owned()),
            ("Host", "echo".to_owned()),
        ];
        let facts = facts.map(|(name, value)| (name.to_owned(), value)).into();
        Answer { status: 200, facts, ..Answer::default() }
    }

    #[test]
    fn each_expectation_can_be_missed() {
        let good = answer("echo-v1", "/");
        let of = |case: Case| {
            let misses = case.judge(&vec![good.clone(); case.requests()], "echo");
            (misses.upstream.is_empty(), misses.strict.is_empty())
        };
        assert_eq!(of(get("/").by("echo-v1")), (true, true));
        assert!(!of(get("/").by("echo-v2")).0);
        assert!(!of(get("/").status(404)).0);
        assert!(!of(get("/").sent("x", "y")).0);
        assert!(!of(get("/").answered("x", "y")).0);
        assert_eq!(of(get("/").not_sent(&["x"]).not_answered("x")), (true, true));
        assert_eq!(of(get("/").as_path("/other")), (true, false));
        assert_eq!(of(get("/").as_host("other")), (true, false));
        assert_eq!(of(get("/").redirected(200, "http://echo/")), (true, false));
        assert_eq!(of(get("/").fact("Proto", "HTTP/2.0")), (true, false));
        assert!(!of(call()).0);
    }

    #[test]
    fn one_of_several_answers_misses_the_strict_level() {
        let case = get("/").by("echo-v1");
        let mut answers = vec![answer("echo-v1", "/"); case.requests() - 1];
        answers.push(answer("echo-v2", "/"));
        let misses = case.judge(&answers, "echo");
        assert!(misses.upstream.is_empty() && !misses.strict.is_empty(), "{misses:?}");
        answers.pop();
        assert!(!case.judge(&answers, "echo").upstream.is_empty(), "one answer is missing");
    }

    #[test]
    fn shares_are_within_a_twentieth_and_nobody_else_answers() {
        let case = get("/").shares(SAMPLES, &[("echo-v1", 0.7), ("echo-v2", 0.3)]);
        let answers = |first: usize, other: &str| {
            let mut answers = vec![answer("echo-v1", "/"); first];
            answers.resize(SAMPLES, answer(other, "/"));
            answers
        };
        let holds = |answers: &[Answer]| case.judge(answers, "echo").upstream.is_empty();
        assert!(holds(&answers(350, "echo-v2")) && holds(&answers(374, "echo-v2")));
        assert!(!holds(&answers(376, "echo-v2")), "out of bounds");
        assert!(!holds(&answers(350, "echo-v3")), "somebody else");
        let mut fewer = answers(350, "echo-v2");
        fewer.pop();
        assert!(!holds(&fewer), "one is missing");
    }
}
