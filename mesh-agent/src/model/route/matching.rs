//! What a request must have to meet a rule.

use std::sync::Arc;

use http::Method;
use http::header::HeaderName;
use regex::{Regex, RegexBuilder};

/// A text to compare with, or a pattern.
#[derive(Clone, Debug, PartialEq)]
pub enum TextMatch {
    /// The same bytes.
    Exact(Arc<str>),
    /// The pattern matches the whole.
    Regex(Pattern),
}

/// A regular expression that must match the whole of a text, as the Gateway API wants it.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: Arc<str>,
    regex: Regex,
}

/// Bytes that one compiled pattern may take, and its cache: routes are written by many, memory is the node's.
const PATTERN_BYTES: usize = 256 << 10;

impl Pattern {
    /// Compiles `source` (the syntax of the `regex` crate: no look-around, no back-references, linear time).
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn new(source: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(PATTERN_BYTES)
            .dfa_size_limit(PATTERN_BYTES)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(limit) => format!("the pattern takes more than {limit} bytes"),
                other => other.to_string().lines().last().unwrap_or_default().to_owned(),
            })?;
        // `a)(b` would close the group above and so escape the anchors.
        Regex::new(source).map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())?;
        Ok(Self { source: source.into(), regex })
    }

    /// Whether all of `text` matches.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// What a request must have: all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Its path.
    pub path: PathMatch,
    /// Its method; `None`: any.
    pub method: Option<Method>,
    /// Headers, each name once.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, each name once.
    pub query: Vec<QueryMatch>,
}

/// What a path must be.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// The same bytes.
    Exact(Arc<str>),
    /// A prefix of whole segments.
    Prefix(Arc<str>),
    /// A pattern.
    Regex(Pattern),
    /// `/service/method` of gRPC.
    Grpc {
        /// `package.Service`; `None`: any.
        service: Option<TextMatch>,
        /// `Method`; `None`: any.
        method: Option<TextMatch>,
    },
}

/// What a header must be.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its values, joined by `,`.
    pub value: TextMatch,
}

/// What a query parameter must be.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Its name.
    pub name: Arc<str>,
    /// Its first value, decoded.
    pub value: TextMatch,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_or_nothing() {
        for (source, text, expected) in [
            ("/v[0-9]+", "/v12", true),
            ("/v[0-9]+", "/v12/x", false),
            ("/v[0-9]+", "x/v12", false),
            ("a|b", "ab", false),
            ("a|b", "b", true),
            ("a", "a\n", false),
            ("", "", true),
        ] {
            assert_eq!(Pattern::new(source).expect(source).is_match(text), expected, "{source} on {text:?}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_says_why() {
        for (source, reason) in
            [("a)(b", "unopened group"), ("[", "unclosed"), ("(?=a)", "look-around"), ("(a{1000}){1000}", "more than")]
        {
            let error = Pattern::new(source).expect_err(source);
            assert!(error.contains(reason), "{source}: {error}");
        }
    }
}
