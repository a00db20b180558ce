//! The trace that a request belongs to, as its headers say: W3C Trace Context (<https://www.w3.org/TR/trace-context/>),
//! else B3 (<https://github.com/openzipkin/b3-propagation>). Pure: nothing here draws a number or reads a clock.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors say of a trace; of one that is not continued it says nothing.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// The headers that a context came in, and goes on in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `traceparent`.
    W3c,
    /// `b3`.
    B3,
    /// `x-b3-*`.
    B3Multi,
}

/// A place in a trace: the span that a request was sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; never 0.
    pub trace: u128,
    /// The span; never 0.
    pub span: u64,
    /// Whether its spans are recorded; `None`: that is for the next one to decide (B3 alone can say so).
    pub sampled: Option<bool>,
    /// Where it was found.
    pub form: Form,
}

impl Context {
    /// What the headers of a request say: the first form that is valid.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        w3c(headers).or_else(|| b3(headers)).or_else(|| b3_multi(headers))
    }

    /// The trace as every form writes it.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Writes this place into the headers of its form. What is there of other forms stays as it is.
    pub fn write(&self, headers: &mut HeaderMap) {
        let sampled = self.sampled == Some(true);
        let mut text = String::with_capacity(55);
        match self.form {
            Form::W3c => {
                let _ = write!(text, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(sampled));
                put(headers, TRACEPARENT, &text);
            }
            Form::B3 => {
                let _ = write!(text, "{:032x}-{:016x}-{}", self.trace, self.span, u8::from(sampled));
                put(headers, B3, &text);
            }
            Form::B3Multi => {
                if let Some(parent) = headers.get(B3_SPAN).cloned() {
                    headers.insert(B3_PARENT, parent);
                }
                let _ = write!(text, "{:016x}", self.span);
                put(headers, B3_SPAN, &text);
                if !headers.contains_key(B3_FLAGS) {
                    put(headers, B3_SAMPLED, if sampled { "1" } else { "0" });
                }
            }
        }
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The header's value, if it stands there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)?.to_str().ok()
}

/// `version-trace-span-flags`. Later versions may go on after another `-`; 255 is none.
fn w3c(headers: &HeaderMap) -> Option<Context> {
    let text = only(headers, &TRACEPARENT)?.trim();
    let (version, rest) = text.split_once('-')?;
    let version = hex(version, 2)?;
    let (trace, rest) = rest.split_once('-')?;
    let (span, rest) = rest.split_once('-')?;
    let flags = match rest.split_once('-') {
        None => rest,
        Some((flags, _)) if version > 0 => flags,
        Some(_) => return None,
    };
    let flags = hex(flags, 2)?;
    if version == 0xff {
        return None;
    }
    context(hex(trace, 32)?, hex(span, 16)?, Some(flags & 1 == 1), Form::W3c)
}

/// `trace-span[-sampled[-parent]]`, or only whether to sample, which continues nothing.
fn b3(headers: &HeaderMap) -> Option<Context> {
    let mut fields = only(headers, &B3)?.trim().split('-');
    let trace = b3_trace(fields.next()?)?;
    let span = hex(fields.next()?, 16)?;
    let sampled = match fields.next() {
        None => None,
        Some("1" | "d") => Some(true),
        Some("0") => Some(false),
        Some(_) => return None,
    };
    context(trace, span, sampled, Form::B3)
}

fn b3_multi(headers: &HeaderMap) -> Option<Context> {
    let trace = b3_trace(only(headers, &B3_TRACE)?)?;
    let span = hex(only(headers, &B3_SPAN)?, 16)?;
    let sampled = match (only(headers, &B3_FLAGS), only(headers, &B3_SAMPLED)) {
        (Some("1"), _) | (_, Some("1" | "true")) => Some(true),
        (_, Some("0" | "false")) => Some(false),
        _ => None,
    };
    context(trace, span, sampled, Form::B3Multi)
}

fn context(trace: u128, span: u128, sampled: Option<bool>, form: Form) -> Option<Context> {
    let span = u64::try_from(span).ok().filter(|span| *span != 0)?;
    (trace != 0).then_some(Context { trace, span, sampled, form })
}

/// 64 bits or 128.
fn b3_trace(text: &str) -> Option<u128> {
    hex(text, 16).or_else(|| hex(text, 32))
}

/// A number of exactly `digits` lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let valid = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    valid.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn found(pairs: &[(&'static str, &str)]) -> Option<(u128, u64, Option<bool>, Form)> {
        Context::of(&headers(pairs)).map(|found| (found.trace, found.span, found.sampled, found.form))
    }

    fn expected(sampled: Option<bool>, form: Form) -> Option<(u128, u64, Option<bool>, Form)> {
        Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, sampled, form))
    }

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says() {
        for (text, sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-comes-later"), Some(true)),
            (format!(" 00-{TRACE}-{SPAN}-01 "), Some(true)),
        ] {
            assert_eq!(found(&[("traceparent", &text)]), expected(sampled, Form::W3c), "{text}");
        }
        for text in [
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            "".to_owned(),
        ] {
            assert_eq!(found(&[("traceparent", &text)]), None, "{text}");
        }
        let text = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(found(&[("traceparent", &text), ("traceparent", &text)]), None, "twice is none");
    }

    #[test]
    fn b3_is_read_in_both_forms_where_there_is_no_traceparent() {
        for (text, sampled) in [
            (format!("{TRACE}-{SPAN}"), None),
            (format!("{TRACE}-{SPAN}-1"), Some(true)),
            (format!("{TRACE}-{SPAN}-d"), Some(true)),
            (format!("{TRACE}-{SPAN}-0-{SPAN}"), Some(false)),
        ] {
            assert_eq!(found(&[("b3", &text)]), expected(sampled, Form::B3), "{text}");
        }
        assert_eq!(found(&[("b3", "0")]), None);
        assert_eq!(found(&[("b3", &format!("{SPAN}-{SPAN}-1"))]).unwrap().0, 0x00f0_67aa_0ba9_02b7, "64 bits");
        let multi = |sampled| [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), sampled];
        assert_eq!(found(&multi(("x-b3-sampled", "1"))), expected(Some(true), Form::B3Multi));
        assert_eq!(found(&multi(("x-b3-flags", "1"))), expected(Some(true), Form::B3Multi));
        assert_eq!(found(&multi(("x-b3-sampled", "0"))), expected(Some(false), Form::B3Multi));
        assert_eq!(found(&multi(("x-other", "0"))), expected(None, Form::B3Multi));
        let text = format!("00-{TRACE}-{SPAN}-01");
        let both = [("traceparent", text.as_str()), ("b3", "0000000000000001-0000000000000002-0")];
        assert_eq!(found(&both), expected(Some(true), Form::W3c), "traceparent goes first");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for form in [Form::W3c, Form::B3, Form::B3Multi] {
            let context = Context { trace: 7 << 64, span: 9, sampled: Some(true), form };
            let mut headers = headers(&[]);
            if form == Form::B3Multi {
                put(&mut headers, B3_TRACE, &context.trace_id());
                put(&mut headers, B3_SPAN, SPAN);
            }
            context.write(&mut headers);
            assert_eq!(Context::of(&headers), Some(context));
            assert_eq!(headers.get(B3_PARENT).is_some(), form == Form::B3Multi);
        }
    }
}
