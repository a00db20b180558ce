//! What `mesh-sample gateway-ask` printed, read back.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One answer, or why there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 0 without an answer.
    pub status: u16,
    /// Why there is no answer.
    pub error: Option<String>,
    /// gRPC status.
    pub grpc_status: Option<u16>,
    /// Headers of the answer: lower-case names, values of one name joined with `,`.
    pub headers: BTreeMap<String, String>,
    /// Headers of the request as the server got them; as `headers`.
    pub sent: BTreeMap<String, String>,
    /// Other facts of the server: `Hostname`, `Namespace`, `URL`, `Host`, `Method`, `Proto`, `ServicePort`, …
    pub facts: BTreeMap<String, String>,
}

impl Answer {
    /// A fact of the server; empty when it told none.
    #[must_use]
    pub fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("", String::as_str)
    }

    /// The Deployment that answered: the pod's name without its last two parts.
    #[must_use]
    pub fn backend(&self) -> &str {
        let name = self.fact("Hostname");
        name.rsplitn(3, '-').nth(2).unwrap_or(name)
    }

    /// In one line, for whoever looks for what went wrong.
    #[must_use]
    pub fn summary(&self) -> String {
        if let Some(error) = &self.error {
            return error.clone();
        }
        let reason = self.headers.get("x-mesh-agent-reason").map(|reason| format!(" ({reason})")).unwrap_or_default();
        let grpc = self.grpc_status.map(|status| format!(", grpc-status {status}")).unwrap_or_default();
        let from = if self.backend().is_empty() { String::new() } else { format!(" from {}", self.backend()) };
        let told = |name: &String| !["content-length", "content-type", "date"].contains(&name.as_str());
        let headers: Vec<String> = self
            .headers
            .iter()
            .filter(|(name, _)| told(name))
            .map(|(name, value)| format!(" {name}:{value}"))
            .collect();
        format!("{}{grpc}{reason}{from}{}", self.status, headers.concat())
    }
}

/// Reads what the client printed, in the order of the requests.
///
/// # Errors
/// When a line is none of the client's.
pub fn parse(printed: &str) -> Result<Vec<Answer>> {
    let mut answers: Vec<Answer> = Vec::new();
    for line in printed.lines() {
        let (number, text) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).context(line.to_owned())?;
        let (number, in_body) = match number.strip_suffix(" body") {
            Some(number) => (number, true),
            None => (number, false),
        };
        let number: usize = number.parse().with_context(|| line.to_owned())?;
        if answers.len() <= number {
            answers.resize_with(number + 1, Answer::default);
        }
        let answer = answers.get_mut(number).context("no such answer")?;
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match (in_body, name) {
            (false, "StatusCode") => answer.status = value.parse().with_context(|| line.to_owned())?,
            (false, "GrpcStatus") => answer.grpc_status = Some(value.parse().with_context(|| line.to_owned())?),
            (false, "Error") => answer.error = Some(value.to_owned()),
            (false, "ResponseHeader") => add(&mut answer.headers, value),
            (true, "RequestHeader") => add(&mut answer.sent, value),
            (true, _) => drop(answer.facts.insert(name.to_owned(), value.to_owned())),
            (false, _) => {}
        }
    }
    Ok(answers)
}

fn add(headers: &mut BTreeMap<String, String>, header: &str) {
    let (name, value) = header.split_once(':').unwrap_or((header, ""));
    let all = headers.entry(name.to_ascii_lowercase()).or_default();
    if !all.is_empty() {
        all.push(',');
    }
    all.push_str(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_and_read() {
        let printed = "[0] Url=http://echo/\n[0] StatusCode=200\n[0] ResponseHeader=A:1\n[0] ResponseHeader=a:2\n\
                       [0 body] RequestHeader=host:echo:80\n[0 body] Hostname=echo-v1-abc12-x1y2z\n\
                       [0 body] URL=/a?b=c\n[1] Url=http://echo/\n[1] Error=refused\n";
        let answers = parse(printed).expect("answers");
        assert_eq!(answers.len(), 2);
        let (first, second) = (answers.first().expect("one"), answers.last().expect("two"));
        assert_eq!((first.status, first.backend(), first.fact("URL")), (200, "echo-v1", "/a?b=c"));
        assert_eq!(first.headers.get("a").map(String::as_str), Some("1,2"));
        assert_eq!(first.sent.get("host").map(String::as_str), Some("echo:80"));
        assert_eq!((second.status, second.error.as_deref()), (0, Some("refused")));
        assert!(parse("nonsense").is_err());
    }
}
